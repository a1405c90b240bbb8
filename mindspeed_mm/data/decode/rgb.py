"""Converts decoded frames to planes of red, green and blue, by FFmpeg's libswscale.

The bytes equal those of its rgb24 conversion. Its planar conversion gives the same bytes faster, and the resize needs
planes. But FFmpeg 8.1 leaves the last columns of some widths (854) unwritten there, and older releases round
differently. So each kind of frame is first tried with noise.
"""

import av
import numpy as np
from av.video.reformatter import VideoReformatter

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]  # red, green, blue: uint8 [H,W]

_HAVE_A_PLANAR_WAY = ("yuv420p", "yuvj420p")


class RgbConverter:
    """Converts frames of any format to Planes, as stored. Remembers for which kinds of frames the planar way is right."""

    def __init__(self):
        self._planar: dict[tuple, bool] = {}

    def __call__(self, frame: av.VideoFrame, reformatter: VideoReformatter) -> Planes:
        """reformatter: one per clip. The planes are valid until its next use."""
        return _planar(frame, reformatter) if self._may_be_planar(frame) else split(_packed(frame, reformatter))

    def _may_be_planar(self, frame: av.VideoFrame) -> bool:
        if frame.format.name not in _HAVE_A_PLANAR_WAY:
            return False
        kind = frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range
        if kind not in self._planar:
            self._planar[kind] = _gives_the_same(*kind)
        return self._planar[kind]


def split(pixels: np.ndarray) -> Planes:
    """Splits [H,W,3] into planes."""
    red, green, blue = (np.ascontiguousarray(pixels[:, :, channel]) for channel in range(3))
    return red, green, blue


def _gives_the_same(name: str, width: int, height: int, colorspace: int, color_range: int) -> bool:
    """True if both conversions of a frame of noise agree in every byte."""
    noise, draw = av.VideoFrame(width, height, name), np.random.default_rng(0)
    noise.colorspace, noise.color_range = colorspace, color_range
    for plane in noise.planes:
        plane.update(draw.bytes(plane.buffer_size))
    wanted, found = split(_packed(noise, VideoReformatter())), _planar(noise, VideoReformatter())
    return all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))


def _packed(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """[H,W,3]."""
    plane = reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
    return _lines(plane)[: frame.height, : 3 * frame.width].reshape(frame.height, frame.width, 3)


def _planar(frame: av.VideoFrame, reformatter: VideoReformatter) -> Planes:
    planes = reformatter.reformat(frame, format="gbrp", threads=1).planes
    green, blue, red = (_lines(plane)[: frame.height, : frame.width] for plane in planes)
    return red, green, blue


def _lines(plane) -> np.ndarray:
    """A plane's bytes by line; lines are padded to a multiple of 32 or so."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
