"""Written videos: what a player finds in them."""

import av
import numpy as np
import pytest

from mindspeed_mm.sampling.writer import write_image, write_video


def moving_square(frames=5, height=48, width=64):
    video = np.full((frames, height, width, 3), 30, np.uint8)
    for index in range(frames):
        video[index, 10:30, 5 + 6 * index : 25 + 6 * index] = (220, 40, 40)
    return video


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        facts = (
            stream.codec_context.name,
            stream.codec_context.pix_fmt,
            float(stream.average_rate),
            container.format.name,
        )
        return facts, np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def test_h264_yuv420p_at_the_given_rate_with_every_frame(tmp_path):
    video = moving_square()
    write_video(video, tmp_path / "deep" / "v.mp4", 24)
    (codec, pixels, rate, container), frames = read(tmp_path / "deep" / "v.mp4")
    assert (codec, pixels, rate) == ("h264", "yuv420p", 24.0)
    assert "mp4" in container
    assert frames.shape == video.shape
    assert np.abs(frames.astype(int) - video).mean() < 4
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["v.mp4"]


def test_the_index_comes_first_so_that_a_browser_starts_at_once(tmp_path):
    write_video(moving_square(), tmp_path / "v.mp4", 24)
    data = (tmp_path / "v.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_lose_nothing(tmp_path):
    write_video(moving_square(height=47, width=63), tmp_path / "v.mp4", 8)
    assert read(tmp_path / "v.mp4")[1].shape[1:3] == (48, 64)


def test_an_image_is_written_exactly(tmp_path):
    from PIL import Image

    frames = moving_square(frames=1)
    write_image(frames, tmp_path / "i.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "i.png")), frames[0])


def test_wrong_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"v.mp4: frames are float64 \[2, 8, 8, 3\]"):
        write_video(np.zeros((2, 8, 8, 3)), tmp_path / "v.mp4", 24)


def test_equal_frames_make_equal_files(tmp_path):
    video = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
    files = set()
    for number in range(20):
        write_video(video, tmp_path / f"{number}.mp4", 24)
        files.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(files) == 1
