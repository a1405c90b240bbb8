"""Decoding: the frames asked for, whatever the file is like."""

import random
import shutil
import sys
import time

import av
import numpy as np
import pytest
from data_helpers import frame_number, write_clip
from PIL import Image

from mindspeed_mm.data.decode import frame_index
from mindspeed_mm.data.decode.facts import facts_of
from mindspeed_mm.data.decode.frame_index import FrameIndexes
from mindspeed_mm.data.decode.images import read_image
from mindspeed_mm.data.decode.readers import PyavReader, build_reader, read_clip
from mindspeed_mm.errors import DataError

REAL = (
    "lift.mp4",
    "summit.mp4",
    "press.mp4",
    "full_range.mp4",
    "ten_bits.mp4",
    "av1.mkv",
    "h265.mp4",
    "broken/unordered.mov",
)


def read_pyav(path: str, indices) -> np.ndarray:
    """All frames of one access by a fresh default reader."""
    return read_clip(build_reader("decoder"), path, indices)


def decode_all(path) -> list[np.ndarray]:
    """Every frame from the start, without index and seek."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def assert_reads(path, frames, indices):
    found = read_pyav(str(path), indices)
    assert found.dtype == np.uint8 and len(found) == len(indices)
    for got, index in zip(found, indices, strict=True):
        assert np.array_equal(got, frames[index]), f"frame {index} of {path}"


@pytest.mark.parametrize("name", REAL)
def test_real_clips_give_the_frames_of_a_full_decode(clips, name):
    frames = decode_all(clips / name)
    count, draw = len(frames), random.Random(0)
    some = sorted(draw.sample(range(count), min(count, 6)))
    for indices in ([0], [count - 1], some, some[::-1], [count // 2] * 2, list(range(count // 2, count, 3))):
        assert_reads(clips / name, frames, indices)


ENCODINGS = {
    "b_frames.mkv": dict(codec="libx264", **{"x264-params": "keyint=30:bframes=5:b-pyramid=normal"}),
    "open_gop.mp4": dict(codec="libx264", **{"x264-params": "open-gop=1:keyint=24:min-keyint=24:bframes=3:scenecut=0"}),
    "variable_rate.mp4": dict(codec="libx264", variable=True, **{"x264-params": "keyint=20:bframes=3"}),
    "intra_refresh.mp4": dict(
        codec="libx264", height=128, width=256, **{"x264-params": "intra-refresh=1:keyint=24:bframes=0"}
    ),
    "odd_size.mp4": dict(codec="libx264", width=131, height=67, pix_fmt="yuv444p", **{"x264-params": "keyint=20"}),
    "h265_open_gop.mp4": dict(codec="libx265", **{"x265-params": "keyint=24:open-gop=1:bframes=4:log-level=none"}),
    "h265_10_bit.mkv": dict(codec="libx265", pix_fmt="yuv420p10le", **{"x265-params": "keyint=24:log-level=none"}),
    "vp9.webm": dict(codec="libvpx-vp9", **{"g": "30", "cpu-used": "8", "deadline": "realtime"}),
    "vp8.webm": dict(codec="libvpx", **{"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
    "mpeg4.avi": dict(codec="mpeg4", **{"g": "12", "bf": "2"}),
    "h264.avi": dict(codec="libx264", **{"x264-params": "keyint=24:bframes=3"}),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_frames_after_a_seek_are_the_right_ones(tmp_path, name):
    if ENCODINGS[name]["codec"] not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {ENCODINGS[name]['codec']}")
    path = write_clip(tmp_path / name, 110, **ENCODINGS[name])
    frames = decode_all(path)
    assert [frame_number(frame) for frame in frames] == list(range(110))
    draw = random.Random(0)
    for _ in range(6):
        first = draw.randint(33, 108)
        assert_reads(path, frames, [first, *sorted(draw.sample(range(first, 110), 2))])


def test_late_frames_are_reached_by_a_seek(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", 110, **ENCODINGS["open_gop.mp4"])
    monkeypatch.setattr(PyavReader, "_from_start", lambda *_: pytest.fail("decoded from the start"))
    assert frame_number(read_pyav(str(path), [100])[0]) == 100


def count_indexing(monkeypatch) -> list:
    """The limits with which packets are read from now on."""
    limits, build = [], frame_index.build_index
    monkeypatch.setattr(
        frame_index,
        "build_index",
        lambda container, stream, limit: limits.append(limit) or build(container, stream, limit),
    )
    return limits


def test_a_frame_index_is_kept_and_not_built_again(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", 200, **ENCODINGS["open_gop.mp4"])
    limits, reader = count_indexing(monkeypatch), build_reader("decoder")
    for frame in (40, 38, 40):
        assert frame_number(read_clip(reader, str(path), [frame])[0]) == frame
    assert limits == [40 + 1 + 32]  # the beginning of the file is enough for these
    for frame in (180, 199, 60, 40):
        assert frame_number(read_clip(reader, str(path), [frame])[0]) == frame
    assert limits == [73, None]  # then the whole, once
    write_clip(tmp_path / "clip.mp4", 100, first=20, **ENCODINGS["open_gop.mp4"])
    assert frame_number(read_clip(reader, str(path), [90])[0]) == 110  # another file under the same name
    assert len(limits) == 3


def test_a_folder_keeps_frame_indexes_from_run_to_run(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mkv", 110, **ENCODINGS["b_frames.mkv"])
    reader = build_reader("decoder", str(tmp_path / "indexes"))
    read_clip(reader, str(path), [100])
    read_clip(reader, str(path), [109])
    limits = count_indexing(monkeypatch)
    another = build_reader("decoder", str(tmp_path / "indexes"))
    assert frame_number(read_clip(another, str(path), [101])[0]) == 101
    assert limits == []
    (file,) = (tmp_path / "indexes").rglob("*.index")
    whole = file.read_bytes()
    # cut; nothing; a time stamp twice, so that later frames would have other numbers
    for number, damaged in enumerate((b"cut", b"", whole[:80] + whole[72:]), start=1):
        file.write_bytes(damaged)
        assert frame_number(read_clip(build_reader("pyav", str(tmp_path / "indexes")), str(path), [105])[0]) == 105
        assert len(limits) == number and file.read_bytes() == whole  # it is built again


def test_kept_indexes_are_bounded(tmp_path):
    indexes = FrameIndexes(kept_stamps=150)
    for number in range(5):
        path = write_clip(tmp_path / f"{number}.mp4", 60, 32, 128)
        read_clip(PyavReader(indexes), str(path), [50])
        assert sum(len(index.stamps) for index in indexes._kept.values()) <= 150
    assert len(indexes._kept) == 2


def test_pixels_come_one_frame_at_a_time_with_all_their_places(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 20)
    frames = build_reader("pyav").frames(str(path), [7, 3, 7, 11])
    met = [(places, frame_number(np.stack(planes, axis=-1))) for places, planes in frames]
    assert met == [((1,), 3), ((0, 2), 7), ((3,), 11)]


def test_rotation_of_the_metadata_is_applied(clips):
    path = clips / "broken" / "rotated_90.mov"
    frames = decode_all(path)
    assert frames[0].shape == (64, 112, 3)
    assert_reads(path, [np.rot90(frame, -1) for frame in frames], [0, 2])  # -90: clockwise, to portrait


def test_colours_follow_the_matrix_and_range_of_the_file(clips):
    # full_range.mp4 is full-range BT.709; the BT.601 matrix or limited range would differ by 9 to 17 on average
    with av.open(str(clips / "full_range.mp4")) as container:
        frame = next(container.decode(video=0))
    y, u, v = (np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size).astype(np.float64) for plane in frame.planes)
    u, v = (plane[:72, :128].repeat(2, 0).repeat(2, 1) - 128 for plane in (u, v))
    y = y[:144, :256]
    red, blue = y + 1.5748 * v, y + 1.8556 * u
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    expected = np.stack([red, green, blue], -1).clip(0, 255)
    assert np.abs(read_pyav(str(clips / "full_range.mp4"), [0])[0] - expected).mean() < 1


@pytest.mark.parametrize("first", [0, 40])
def test_an_index_past_the_end_is_an_error_with_the_numbers(tmp_path, first):
    path = write_clip(tmp_path / "clip.mp4", 50)
    with pytest.raises(DataError, match=r"clip.mp4: has 50 frames; frame 50 was asked for"):
        read_pyav(str(path), [first, 50])


@pytest.mark.parametrize("index", [40, 45])
def test_a_file_that_is_damaged_further_on_gives_its_good_frames_only(clips, index):
    path = str(clips / "broken" / "corrupted.mp4")
    assert read_pyav(path, [0, 20]).shape == (2, 144, 256, 3)
    with pytest.raises(DataError, match="corrupted.mp4: cannot be decoded"):
        read_pyav(path, [0, index])


@pytest.mark.parametrize("name", ["not_a_video.mp4", "truncated.mp4", "zero_byte.mp4", "absent.mp4"])
def test_broken_files_are_errors_at_once(clips, name):
    begin = time.perf_counter()
    with pytest.raises(DataError, match=f"{name}: cannot be decoded: (Invalid data|No such file)"):
        read_pyav(str(clips / "broken" / name), [0])
    assert time.perf_counter() - begin < 2


def test_a_file_cut_or_flipped_at_random_bytes_is_right_or_an_error(tmp_path):
    whole = write_clip(tmp_path / "whole.mkv", 60, codec="libx264", **{"x264-params": "keyint=20"}).read_bytes()
    draw, outcomes = random.Random(3), set()
    for number in range(12):
        path = tmp_path / f"{number}.mkv"
        damaged = bytearray(whole[: draw.randint(0, len(whole))])
        path.write_bytes(bytes(damaged))
        try:
            outcomes.add(len(read_pyav(str(path), [0, 40])))
        except DataError as error:
            outcomes.add("error")
            assert str(path) in str(error) and "\n" not in str(error)
    assert outcomes == {2, "error"}


def test_a_file_without_video_is_an_error(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="sound.mp4: holds no video stream"):
        read_pyav(str(path), [0])


def test_published_and_own_names_of_readers():
    assert isinstance(build_reader("decoder"), PyavReader) and isinstance(build_reader("pyav"), PyavReader)


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_an_optional_reader_that_is_not_installed_names_its_package(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.decoders", None)
    with pytest.raises(DataError, match=f"pip install {name}"):
        build_reader(name)


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_an_optional_reader_gives_the_same_frames_where_it_is_installed(tmp_path, name):
    pytest.importorskip(name)
    path = str(write_clip(tmp_path / "clip.mp4", 60))
    try:
        reader = build_reader(name)
    except DataError as error:
        pytest.skip(str(error))
    assert [frame_number(frame) for frame in read_clip(reader, path, [50, 3, 3])] == [50, 3, 3]
    with pytest.raises(DataError, match="clip.mp4: has 60 frames; frame 60 was asked for"):
        read_clip(reader, path, [0, 60])
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=f"bad.mp4: cannot be decoded by {name}"):
        read_clip(reader, str(tmp_path / "bad.mp4"), [0])


def _facts(path):
    found = facts_of(path, "video")
    return found.height, found.width, found.fps, found.num_frames


def test_facts_of_a_file_are_probed(tmp_path, clips):
    assert _facts(str(clips / "lift.mp4")) == (90, 160, 25.0, 325)
    assert _facts(str(clips / "av1.mkv")) == (90, 160, 25.0, 125)
    assert _facts(str(clips / "broken" / "rotated_90.mov"))[:2] == (112, 64)  # as it is shown
    assert _facts(str(write_clip(tmp_path / "a.webm", 31, codec="libvpx-vp9", fps=30)))[2:] == (30.0, 31)
    for name in ("zero_byte.mp4", "truncated.mp4", "not_a_video.mp4", "absent.mp4"):
        with pytest.raises(DataError, match=name):
            _facts(str(clips / "broken" / name))


def test_images_are_rgb_and_turned_by_their_orientation(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    found = read_image(str(tmp_path / "turned.png"))
    assert found.shape == (1, 6, 4, 3) and found.dtype == np.uint8
    assert np.array_equal(found[0], np.rot90(pixels, -1))
    image.convert("L").save(tmp_path / "grey.jpg")
    assert read_image(str(tmp_path / "grey.jpg")).shape == (1, 4, 6, 3)


def test_a_broken_image_is_an_error(tmp_path, clips):
    shutil.copy(clips / "broken" / "not_a_video.mp4", tmp_path / "not.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name in ("not.png", "cut.png", "absent.png"):
        with pytest.raises(DataError, match=f"{name}: (cannot be read as an image|is damaged)"):
            read_image(str(tmp_path / name))
