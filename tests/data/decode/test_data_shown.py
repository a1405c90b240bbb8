"""Clips and pictures as they are shown: square pixels, one field, BT.709, on white."""

import fractions

import av
import numpy as np
import pytest
from data_helpers import data_config, frame_number, row, write_clip, write_list
from PIL import Image

import mindspeed_mm as mm
from mindspeed_mm.data.decode import suffixes
from mindspeed_mm.data.decode.facts import facts_of
from mindspeed_mm.data.decode.rgb import RgbConverter
from mindspeed_mm.data.decode.shown import Screen
from mindspeed_mm.errors import DataError

RED = (200, 100, 50)


def encode(path, codec="ffv1", pix_fmt="bgr0", *, pixels=None, count=4, aspect=None, height=48, width=64, **options):
    """A clip of one colour, or of `pixels` [H,W,3 or 4] in every frame."""
    pixels = np.full((height, width, 3), RED, np.uint8) if pixels is None else pixels
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], pix_fmt
        stream.height, stream.width = pixels.shape[:2]
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = fractions.Fraction(aspect)
        for _ in range(count):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def near(found, wanted, by=6) -> bool:
    return bool(np.abs(np.asarray(found, int) - np.asarray(wanted, int)).max() <= by)


@pytest.mark.parametrize(("aspect", "width"), [("2", 128), ("16/15", 68), ("8/9", 57)])
def test_pixels_become_square(tmp_path, aspect, width):
    path = encode(tmp_path / "clip.mp4", "libx264", "yuv420p", aspect=aspect)
    clip = mm.read_clip(path, range(3))
    assert clip.shape == (3, 48, width, 3) and near(clip, RED)
    facts = facts_of(str(path), "video")
    assert (facts.height, facts.width) == (48, width) and facts.traits[0].startswith("pixels of ")


def test_pixels_that_cannot_be_meant_are_refused():
    with pytest.raises(DataError, match="pixels of 200:1 cannot be meant"):
        Screen("clip.mp4", RgbConverter(), fractions.Fraction(200))


def test_one_field_of_interlaced_frames_is_kept(tmp_path):
    combed = np.zeros((48, 64, 3), np.uint8)
    combed[::2] = 250  # the fields are of different moments: one white, one black
    path = encode(tmp_path / "clip.mkv", "mpeg2video", "yuv420p", pixels=combed, flags="+ildct+ilme", b="4000k")
    frame = mm.read_clip(path, [2])[0, 8:-8]
    assert frame.std() < 20 and (frame.mean() < 40 or frame.mean() > 200)
    assert facts_of(str(path), "video").traits == ("interlaced",)
    assert np.array_equal(mm.read_clip(path, [0, 2])[1], mm.read_clip(path, [2])[0])


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_tone_mapped(tmp_path, transfer, name):
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no encoder libx265")
    grey = np.full((48, 64, 3), 148, np.uint8)  # in PQ the white of paper, 203 cd/m2
    colours = f"log-level=none:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    path = encode(tmp_path / "clip.mkv", "libx265", "yuv420p10le", pixels=grey, **{"x265-params": colours})
    frame = mm.read_clip(path, [1])[0]
    assert facts_of(str(path), "video").traits == (name,)
    assert near(frame[5, 5], frame[5, 5, 0], 2) and not near(frame[5, 5], 148, 3)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.mkv", "ffv1", "yuva420p"), ("a.mov", "qtrle", "argb"), ("a.webm", "libvpx-vp9", "yuva420p")],
)
def test_what_is_transparent_in_a_clip_shows_white(tmp_path, name, codec, pix_fmt):
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, :32] = (*RED, 255)
    pixels[:, 32:] = (0, 0, 200, 0)  # a colour that nobody sees
    clip = mm.read_clip(encode(tmp_path / name, codec, pix_fmt, pixels=pixels), range(2))
    assert near(clip[:, :, :24], RED, 12) and near(clip[:, :, 40:], 255)


def test_deep_pictures_are_scaled(tmp_path):
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    wanted = np.round(ramp / 257).astype(int)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        found = mm.read_image(tmp_path / name)
        assert found.shape == (64, 64, 3) and found.dtype == np.uint8 and near(found[..., 1], wanted, 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_what_is_transparent_in_a_picture_shows_white(tmp_path, mode):
    image = Image.new("RGBA" if mode in ("RGBA", "P") else mode, (6, 4), (0, 0, 200, 0) if mode in ("RGBA", "P") else 0)
    options = {}
    if mode in ("P", "L"):
        image, options = image.convert("RGB").convert(mode), {"transparency": 0 if mode == "L" else None}
        if mode == "P":
            options = {"transparency": image.getpixel((0, 0))}
    image.save(tmp_path / "a.png", **options)
    assert np.all(mm.read_image(tmp_path / "a.png") == 255)


def test_other_modes_of_pictures(tmp_path):
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert near(mm.read_image(tmp_path / "a.tif")[0, 0], (255, 0, 0))
    Image.new("1", (6, 4), 1).save(tmp_path / "b.png")
    assert np.all(mm.read_image(tmp_path / "b.png") == 255)
    Image.fromarray(np.full((4, 6), 0.5, np.float32)).save(tmp_path / "c.tif")
    with pytest.raises(DataError, match=r"c.tif: mode F: its pixels are floats"):
        mm.read_image(tmp_path / "c.tif")


def test_a_decompression_bomb_is_refused_in_one_line(tmp_path, monkeypatch):
    Image.new("1", (4000, 3000)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(DataError, match="a.png: cannot be read as an image: .*exceeds limit") as refusal:
        mm.read_image(tmp_path / "a.png")
    assert "\n" not in str(refusal.value)


def test_theora_repeats_frames(tmp_path):
    from pathlib import Path

    clip = mm.read_clip(Path(__file__).parent / "theora.ogv", range(45))
    same = [np.array_equal(clip[number], clip[number + 1]) for number in range(44)]
    assert clip.shape == (45, 48, 64, 3) and same[:3] == [True, True, False] and 20 < sum(same) < 31


def test_an_animated_picture_is_a_clip_where_its_row_says_so(tmp_path):
    pictures = [Image.new("RGB", (64, 48), (40 * number, 0, 0)) for number in range(5)]
    for name in ("a.gif", "a.png", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=100, **options)
        assert suffixes.kind_of(name, 5) == "video" and suffixes.kind_of(name) == suffixes.kind_of(name, 1) == "image"
        assert mm.read_clip(tmp_path / name, [4, 1])[:, 3, 3, 0].tolist() == [160, 40]
        facts = facts_of(str(tmp_path / name), "video")
        assert (facts.height, facts.width, facts.fps, facts.num_frames) == (48, 64, pytest.approx(10), 5)
        with pytest.raises(DataError, match="has 5 frames; frame 5 was asked for"):
            mm.read_clip(tmp_path / name, [5])


ENCODERS = {".ogv": None, ".wmv": "wmv2", ".asf": "wmv2", ".flv": "flv", ".mpg": "mpeg1video", ".mpeg": "mpeg1video"}
ENCODERS |= {".vob": "mpeg2video", ".mxf": "mpeg2video", ".avi": "mpeg4", ".webm": "libvpx", ".dv": None}
# FFmpeg writes .mts and .m2ts by these names, but not the upper cases of others


def test_what_is_accepted_is_read(tmp_path):
    for suffix in suffixes.video_suffixes():
        codec = ENCODERS.get(suffix, "libx264")
        if codec is not None:
            path = write_clip(tmp_path / f"clip{suffix}", 6, codec=codec, fps=25)
            assert [frame_number(frame) for frame in mm.read_clip(path, [1, 4])] == [1, 4], suffix
    for suffix in suffixes.image_suffixes():
        name = {".jfif": "JPEG", ".j2k": "JPEG2000"}.get(suffix)
        Image.new("RGB", (16, 16), RED).save(tmp_path / f"a{suffix}", name)
        assert suffix == ".pgm" or near(mm.read_image(tmp_path / f"a{suffix}"), RED, 16), suffix
    assert suffixes.kind_of("a.exe") == "unknown" and ".m4v" in suffixes.accepted()


def test_frames_of_variable_rate_are_taken_by_time(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", 60, codec="libx264", variable=True)
    facts = facts_of(str(path), "video")
    assert facts.variable and facts.num_frames == 60
    times = np.cumsum([0, *(20 + number * 37 % 60 for number in range(59))]) / 1000
    assert facts.fps == pytest.approx(59 / times[-1], rel=1e-3)
    for fps, indices in ((10.0, range(0, 25)), (facts.fps, [40, 59, 3])):
        wanted = [int(np.searchsorted(times, index / fps + 0.001, side="right")) - 1 for index in indices]
        assert [frame_number(frame) for frame in mm.read_clip(path, indices, fps=fps)] == wanted
    assert [frame_number(frame) for frame in mm.read_clip(path, [40, 59, 3])] == [40, 59, 3]  # no rate: by number


def test_frames_of_constant_rate_are_taken_by_number_whatever_the_row_says(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", 60, codec="libx264", fps=30)
    for fps in (24.0, 29.97, 300.0):
        assert [frame_number(frame) for frame in mm.read_clip(path, [0, 20, 50], fps=fps)] == [0, 20, 50]


def test_the_rate_of_a_slow_webm_is_that_of_its_packets(tmp_path):
    unit = fractions.Fraction(1, 1000)
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25, options={"deadline": "realtime", "cpu-used": "8"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = unit
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 120 * number, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    facts = facts_of(str(tmp_path / "a.webm"), "video")
    assert facts.fps == pytest.approx(1 / 0.12, rel=1e-3) and not facts.variable and facts.num_frames == 20


def test_a_stream_without_decoder_is_named(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 6)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    for read in (lambda: mm.read_clip(path, [0]), lambda: facts_of(str(path), "video")):
        with pytest.raises(DataError, match="clip.mp4: FFmpeg has no decoder"):
            read()


def test_odd_paths_are_refused_or_read(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        mm.read_clip(tmp_path, [0])
    path = write_clip(tmp_path / "clip.mp4", 6)
    odd = tmp_path / "http:a%03d.mp4"
    odd.symlink_to(path)
    assert len(mm.read_clip(odd, [0, 5])) == 2
    with path.open("ab") as file:
        file.write(b"garbage" * 999)
    assert len(mm.read_clip(path, [0, 5])) == 2


def test_any_error_at_one_clip_is_a_bad_sample_and_its_traceback_is_logged_once(tmp_path, monkeypatch, caplog):
    from data_helpers import LetterTokenizer

    from mindspeed_mm.data.feed.dataset import ClipDataset, Tokens, filtered_list
    from mindspeed_mm.data.feed.ledger import Ledger
    from mindspeed_mm.data.feed.substitutes import Substitutes
    from mindspeed_mm.data.feed.video import VideoSource

    for name in "ab":
        write_clip(tmp_path / f"{name}.mp4", 12)
    config = data_config(write_list(tmp_path, [row("a.mp4"), row("b.mp4")])).dataset_param
    load = VideoSource.load

    def broken(self, clip, *arguments):
        return None.planes if clip.row.path.endswith("a.mp4") else load(self, clip, *arguments)

    monkeypatch.setattr(VideoSource, "load", broken)
    clips = filtered_list(config, global_batch_size=None).clips
    videos = VideoSource(config.preprocess_parameters)
    dataset = ClipDataset(clips, config, videos, Tokens(LetterTokenizer(), None), seed=0)
    ledger = Ledger()
    for _ in range(2):
        found = Substitutes(dataset, 0).take(0, 0)
        ledger.note(found.substitutions, 1)
    assert found.sample.path.endswith("b.mp4")
    (entry,) = ledger.bad_samples.values()
    assert "a.mp4: AttributeError: 'NoneType' object has no attribute 'planes'" in entry.reason and entry.count == 2
    assert caplog.text.count("Traceback (most recent call last)") == 1


SPECIAL = [
    ("another size than its row says", "pixels of 2:1"),
    ("variable frame rate",),
    ("another frame rate than its row says",),
    (),
]


def special_clips(tmp_path):
    """(config, clips, source): a clip for each row of SPECIAL."""
    from mindspeed_mm.data.feed.dataset import filtered_list
    from mindspeed_mm.data.feed.video import VideoSource

    encode(tmp_path / "oblong.mp4", "libx264", "yuv420p", count=20, aspect="2")
    write_clip(tmp_path / "wild.mkv", 60, variable=True)
    write_clip(tmp_path / "slow.mp4", 20, fps=12)
    write_clip(tmp_path / "plain.mp4", 20)
    rows = [row("oblong.mp4", height=48, width=64), row("wild.mkv"), row("slow.mp4"), row("plain.mp4")]
    config = data_config(write_list(tmp_path, rows))
    clips = filtered_list(config.dataset_param, global_batch_size=None).clips
    return config, clips, VideoSource(config.dataset_param.preprocess_parameters)


def test_a_sample_names_what_is_special_about_its_clip(tmp_path):
    from data_helpers import LetterTokenizer

    from mindspeed_mm.data.feed.dataset import ClipDataset, Tokens

    config, clips, videos = special_clips(tmp_path)
    dataset = ClipDataset(clips, config.dataset_param, videos, Tokens(LetterTokenizer(), None), seed=0)
    assert [dataset.sample(place, 0).traits for place in range(4)] == SPECIAL


def test_so_does_a_clip_that_is_encoded_once(tmp_path):
    from mindspeed_mm.data.feed.build import joiner
    from mindspeed_mm.data.workers.pool import Lent
    from mindspeed_mm.training.extraction import Task, _Decoder

    config, clips, videos = special_clips(tmp_path)
    decode = _Decoder(videos, joiner(config, 1, (8, 8, 8), 1), 0)
    made = [decode(Task(clip, 0), lambda item: None) for clip in clips]
    assert [(one.result if isinstance(one, Lent) else one).traits for one in made] == SPECIAL
