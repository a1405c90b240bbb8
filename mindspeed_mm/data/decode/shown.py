"""Converts frames as stored to frames as shown: planes of red, green and blue.

Most frames only need a colour conversion (`data/decode/rgb.py`). Others first pass FFmpeg's filters: interlaced frames keep
one field, from which the other's lines are made; pixels become square; PQ and HLG (HDR) become BT.709 by FFmpeg's
perceptual tone mapping; transparent pixels show white. Each frame is converted alone, so that the result does not
depend on where decoding began.
"""

import contextlib
import fractions
import functools
from collections.abc import Callable
from typing import Any

import av
import av.error
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type as SideData
from av.video.format import VideoFormat
from av.video.reformatter import ColorTrc, VideoReformatter

from mindspeed_mm.data.decode.images import MAX_PIXELS, composite
from mindspeed_mm.data.decode.rgb import Planes, RgbConverter, split
from mindspeed_mm.errors import DataError

Tell = Callable[[str], None]  # called with each special trait of a clip, any number of times
_HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}
_DEINTERLACE = "estdif", "mode=frame:deint=all"  # spatial: ignores neighbours in time
_TONE_MAP = "scale", "out_transfer=bt709:out_primaries=bt709:intent=perceptual"
_SQUARE = fractions.Fraction(1)
SEVERAL, VARIABLE = "several video streams", "variable frame rate"
OTHER_RATE, OTHER_SIZE = "another frame rate than its row says", "another size than its row says"
_MOST_OBLONG = 8  # times as wide as high, or as high as wide; more means damage


_DONE = {  # how each trait is treated
    "interlaced": "one field is kept, the lines of the other are made from it",
    "PQ": "HDR, tone-mapped to BT.709",
    "HLG": "HDR, tone-mapped to BT.709",
    "transparent": "shown on white",
    SEVERAL: "the first that is no cover picture is read",
    VARIABLE: "frames are taken by time",
    OTHER_RATE: "frames are taken by number",
    OTHER_SIZE: "compare the list with its files: tools/check_dataset.py",
}


def ignore(trait: str) -> None:
    """A `Tell` for callers who do not ask."""


def treatment(trait: str) -> str:
    """A trait and how it is treated, for logs and reports."""
    return f"{trait}; {'shown with square pixels' if trait.startswith('pixels of') else _DONE[trait]}"


def traits(frame: av.VideoFrame, aspect: fractions.Fraction) -> tuple[str, ...]:
    """Special traits of a frame, for reports: 'interlaced', 'PQ', 'HLG', 'transparent', 'pixels of 16:15'."""
    found = ["interlaced"] if frame.interlaced_frame else []
    found += [_HDR[int(frame.color_trc)]] if int(frame.color_trc) in _HDR else []
    found += ["transparent"] if has_alpha(frame.format.name) else []
    found += [f"pixels of {aspect.numerator}:{aspect.denominator}"] if aspect != _SQUARE else []
    return tuple(found)


@functools.cache
def has_alpha(name: str) -> bool:
    """True if a pixel format has an alpha channel, or a palette that may have one."""
    form = VideoFormat(name, 16, 16)
    return form.has_palette or any(component.is_alpha for component in form.components)


def pixel_aspect(stream: av.VideoStream) -> fractions.Fraction:
    """Width : height of a pixel, from the container, else from the codec; 1 if both omit it."""
    for owner in (stream, stream.codec_context):
        aspect = owner.sample_aspect_ratio
        if aspect is not None and aspect > 0:
            return fractions.Fraction(aspect)
    return _SQUARE


def shown_size(frame: av.VideoFrame, aspect: fractions.Fraction) -> tuple[int, int]:
    """(height, width) in square pixels: the file's height, its width times the aspect; then turned."""
    height, width = frame.height, _shown_width(frame.width, aspect)
    return (width, height) if _turn(frame)[0] else (height, width)


def _shown_width(width: int, aspect: fractions.Fraction) -> int:
    return max(1, round(width * aspect))


class Screen:
    """Shows the frames of one reading of a file."""

    def __init__(self, path: str, rgb: RgbConverter, aspect: fractions.Fraction, tell: Tell = ignore):
        if not 1 / _MOST_OBLONG <= aspect <= _MOST_OBLONG:
            raise DataError(f"{path}: pixels of {aspect.numerator}:{aspect.denominator} cannot be meant")
        self._path, self._rgb, self._aspect = path, rgb, aspect
        self._tell = tell
        self._square = aspect == _SQUARE
        self._reformatter = VideoReformatter()
        self._chains: dict[tuple, _Chain] = {}

    def __call__(self, frame: av.VideoFrame) -> Planes:
        """Planes of a frame, valid until the next call. The same frame always gives the same planes."""
        for trait in traits(frame, self._aspect):
            self._tell(trait)
        filters = self._filters(frame)
        if not filters and not has_alpha(frame.format.name):
            return turned(self._rgb(frame, self._reformatter), frame)
        kind = (frame.format.name, frame.width, frame.height, frame.color_trc, frame.colorspace, frame.color_range)
        kind = (*kind, frame.color_primaries, frame.interlaced_frame)
        if kind not in self._chains:
            self._chains[kind] = _Chain(frame, filters)
        return turned(self._chains[kind](frame), frame)

    def _filters(self, frame: av.VideoFrame) -> list[tuple[str, str]]:
        filters: list[tuple[str, str]] = [_DEINTERLACE] if frame.interlaced_frame else []
        if int(frame.color_trc) in _HDR:
            filters.append(_TONE_MAP)
        if not self._square:
            width = _shown_width(frame.width, self._aspect)
            if width * frame.height > MAX_PIXELS:
                raise DataError(f"{self._path}: is shown at {width}x{frame.height} pixels; {MAX_PIXELS} are the limit")
            filters.append(("scale", f"w={width}:h={frame.height}:flags=bicubic+accurate_rnd+full_chroma_int"))
        return filters


class _Chain:
    """Filters for frames of one kind."""

    def __init__(self, frame: av.VideoFrame, filters: list[tuple[str, str]]):
        self._alpha = has_alpha(frame.format.name)
        self._graph = Graph()
        base = fractions.Fraction(1, 1000)
        buffer = self._graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
        nodes = [buffer]
        nodes += [self._graph.add(*item) for item in (*filters, ("format", "rgba" if self._alpha else "rgb24"))]
        nodes.append(self._graph.add("buffersink"))
        for node, following in zip(nodes, nodes[1:], strict=False):
            node.link_to(following)
        self._graph.configure()
        self._time = 0

    def __call__(self, frame: av.VideoFrame) -> Planes:
        stamp = frame.pts
        made: av.VideoFrame | None = None
        for _ in range(2):  # the second push releases the first frame from filters that wait for a next one
            frame.pts = self._time  # filters need increasing time stamps
            self._time += 1
            self._graph.push(frame)
            with contextlib.suppress(av.error.BlockingIOError):
                made = self._graph.vpull()
        frame.pts = stamp
        assert made is not None, "these filters give a frame for two"
        pixels = made.to_ndarray()
        return split(composite(pixels) if self._alpha else pixels)


# ------------------------------------------------------------------------------------------------------------- turning


def turned(planes: Planes, frame: av.VideoFrame) -> Planes:
    """Turns planes by the frame's display matrix: quarter turns and mirroring."""
    swapped, left, up = _turn(frame)
    if not (swapped or left or up):
        return planes
    red, green, blue = (
        np.ascontiguousarray((plane.T if swapped else plane)[:: -1 if up else 1, :: -1 if left else 1])
        for plane in planes
    )
    return red, green, blue


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(axes swapped, then mirrored left to right, then upside down) from a frame's display matrix."""
    side_data: Any = frame.side_data  # PyAV declares it as a dict with texts for keys
    data = side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return False, False, False
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    swapped = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if swapped else (a, d)
    return swapped, across < 0, down < 0
