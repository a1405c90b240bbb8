"""Streams that few files have: turned and oblong, deep and oblong, cut by the container, several, none, changing."""

import fractions

import av
import numpy as np
import pytest
from data_helpers import frame_number, numbered_frames, write_clip
from made_clips import _turn as turn
from test_data_shown import RED, encode, near

import mindspeed_mm as mm
from mindspeed_mm.data.decode.facts import facts_of
from mindspeed_mm.data.decode.readers import build_reader, read_clip
from mindspeed_mm.errors import DataError


def size_of(path) -> tuple[int, int]:
    facts = facts_of(str(path), "video")
    return facts.height, facts.width


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("libx264", "yuv420p10le"), ("libx264", "yuv422p10le"), ("libx264", "yuv444p10le"), ("libx265", "yuv420p12le")],
)
def test_deep_and_oblong(tmp_path, codec, pix_fmt):
    path = encode(tmp_path / "a.mp4", codec, pix_fmt, aspect="4/3")
    clip = mm.read_clip(path, range(3))
    assert clip.shape == (3, 48, 85, 3) and near(clip, RED) and size_of(path) == (48, 85)


@pytest.mark.parametrize(("aspect", "shown"), [("2", (128, 48)), ("1/2", (32, 48))])
def test_turned_and_oblong(tmp_path, aspect, shown):
    """Pixels become square as stored, then the picture is turned: 48x64 of 2:1 is 48x128, shown at 128x48."""
    path = encode(tmp_path / "a.mov", "libx264", "yuv420p", aspect=aspect)
    turn(path)
    assert mm.read_clip(path, range(3)).shape == (3, *shown, 3) and size_of(path) == shown


def test_odd_sizes(tmp_path):
    for height, width in ((33, 47), (1, 1), (17, 16), (16, 17)):
        pixels = np.full((height, width, 3), RED, np.uint8)
        path = encode(tmp_path / f"{height}x{width}.mkv", pixels=pixels)
        assert mm.read_clip(path, range(4)).shape == (4, height, width, 3) and size_of(path) == (height, width)
        assert near(mm.read_clip(path, range(4)), RED)


def write_stamped(path, first: int, count: int = 60, **options) -> None:
    """A clip of numbered frames whose time stamps begin at `first`; what lies before 0 is cut by an edit list in mp4."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=24, options={"g": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.time_base = fractions.Fraction(1, 24)
        for number, pixels in enumerate(numbered_frames(count, 64, 128)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number + first, fractions.Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "first", "options", "shown"),
    [
        ("late.mp4", 1000, {}, 0),
        ("late.ts", 1000, {}, 0),
        ("negative.mkv", -7, {"avoid_negative_ts": "make_non_negative"}, 0),
        ("negative.ts", -7, {"avoid_negative_ts": "disabled", "output_ts_offset": "0"}, 0),
        ("edited.mp4", -7, {"avoid_negative_ts": "disabled", "use_editlist": "1"}, 7),
    ],
)
def test_frames_are_counted_from_the_first_that_is_shown(tmp_path, name, first, options, shown):
    """With an edit list the frames in front of 0 are no part of the film; other stamps only shift it."""
    path = tmp_path / name
    write_stamped(path, first, **options)
    count = facts_of(str(path), "video").num_frames
    assert count == 60 - shown
    reader = build_reader("decoder")
    whole = [frame_number(frame) for frame in read_clip(reader, str(path), range(count), 24.0)]
    assert whole == list(range(shown, 60))
    late = [40, 44, 45, count - 1]  # found by seeking
    assert [frame_number(frame) for frame in read_clip(reader, str(path), late, 24.0)] == [shown + n for n in late]
    with pytest.raises(DataError, match=f"has {count} frames"):
        read_clip(reader, str(path), [count])


def test_the_first_of_several_streams_is_read_and_named(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("ffv1", rate=24) for _ in range(2)]
        for stream, (height, width) in zip(streams, ((48, 64), (96, 128)), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for _ in range(4):
            for stream in streams:
                pixels = np.full((stream.height, stream.width, 3), RED, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    told = set()
    frames = list(build_reader("decoder").frames(str(path), range(4), 24.0, told.add))
    assert len(frames) == 4 and frames[0][1][0].shape == (48, 64)
    assert told == {"several video streams"} == set(facts_of(str(path), "video").traits)


def audio_file(path, picture=None) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        cover = None
        if picture is not None:
            cover = container.add_stream("mjpeg")
            cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
            container.mux(cover.encode(frame))
            container.mux(cover.encode(None))
        for number in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("picture", [None, np.full((32, 32, 3), RED, np.uint8)])
def test_sound_is_no_clip_not_even_with_a_cover(tmp_path, picture):
    path = tmp_path / "song.mp4"
    audio_file(path, picture)
    for read in (lambda: mm.read_clip(path, [0]), lambda: facts_of(str(path), "video")):
        with pytest.raises(DataError, match="song.mp4: holds no video stream"):
            read()


def test_a_size_that_changes_in_the_middle_is_refused(tmp_path):
    """Broadcasts change it between programmes; the first frames alone are a clip."""
    parts = [write_clip(tmp_path / "a.ts", 30), write_clip(tmp_path / "b.ts", 30, 96, 160, first=30)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert len(mm.read_clip(path, range(20))) == 20
    with pytest.raises(DataError, match="both.ts: "):
        mm.read_clip(path, range(60))


def test_no_bytes_and_no_end_of_links(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "folder.mp4").mkdir()
    names = {"empty.mp4": "cannot be decoded", "loop.mp4": "levels of symbolic links", "folder.mp4": "is a folder"}
    for name, words in {**names, "n" * 300 + ".mp4": "name too long", "gone.mp4": "No such file"}.items():
        for read in (
            lambda name=name: mm.read_clip(tmp_path / name, [0]),
            lambda name=name: facts_of(str(tmp_path / name), "video"),
        ):
            with pytest.raises(DataError, match=words) as caught:
                read()
            assert "\n" not in str(caught.value)
