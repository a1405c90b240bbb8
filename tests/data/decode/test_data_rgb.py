"""Decoded frames become the bytes of FFmpeg's rgb24 conversion, whichever way they take."""

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from mindspeed_mm.data.decode import rgb


def noise(name, width, height, color_range=1, colorspace=1):
    """Colour spaces and ranges are FFmpeg's numbers: 1 is BT.709, 5 BT.601; 1 limited, 2 full."""
    frame, draw = av.VideoFrame(width, height, name), np.random.default_rng(width)
    frame.color_range, frame.colorspace = color_range, colorspace
    for plane in frame.planes:
        plane.update(draw.bytes(plane.buffer_size))
    return frame


def pixels(converter, frame):
    return np.stack(converter(frame, VideoReformatter()), axis=-1)


@pytest.mark.parametrize("name", ["yuv420p", "yuvj420p", "yuv422p", "nv12", "gray"])
@pytest.mark.parametrize(("color_range", "colorspace"), [(1, 1), (2, 1), (1, 5)])
def test_every_size_gives_the_bytes_of_rgb24(name, color_range, colorspace):
    converter = rgb.RgbConverter()
    for width, height in ((64, 48), (66, 34), (854, 480), (62, 50), (33, 31), (320, 33)):
        for _ in range(2):  # what the first frame taught holds for the second
            frame = noise(name, width, height, color_range, colorspace)
            assert np.array_equal(pixels(converter, frame), frame.to_ndarray(format="rgb24")), (width, height)


def test_a_planar_way_that_gives_other_bytes_is_not_taken(monkeypatch):
    def one_more(frame, reformatter):
        return tuple(plane + 1 for plane in rgb.split(rgb._packed(frame, reformatter)))

    monkeypatch.setattr(rgb, "_planar", one_more)
    frame = noise("yuv420p", 64, 48)
    assert np.array_equal(pixels(rgb.RgbConverter(), frame), frame.to_ndarray(format="rgb24"))
