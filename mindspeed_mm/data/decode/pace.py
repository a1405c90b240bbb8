"""Reads files of constant frame rate by frame number, and others by time."""

from collections.abc import Sequence

import numpy as np

from mindspeed_mm.data.decode import suffixes
from mindspeed_mm.data.decode.decoding import Decoding, opened, video_stream
from mindspeed_mm.data.decode.frame_index import FrameIndexes
from mindspeed_mm.data.decode.images import moving_stamps, past_the_end

_ALL = 2**62  # more frames than any file has
_ROUNDING_S = 0.001  # rounding of Matroska's time stamps


class Pace:
    """Compares the times of decoded frames with a frame rate. Free, since the frames are decoded anyway."""

    def __init__(self, fps: float | None):
        self._fps = fps
        self.timed = fps is not None
        self.irregular = False  # True once a frame is off by more than half a frame's duration

    def see(self, index: int, seconds: float | None) -> None:
        """seconds: time after the first frame of the file; None if the file lacks it."""
        if self._fps is not None and seconds is not None:
            self.irregular = self.irregular or abs(seconds - index / self._fps) > 0.5 / self._fps + _ROUNDING_S


def read_stamps(path: str, indexes: FrameIndexes) -> np.ndarray | None:
    """Times of all frames in a file of variable rate, in seconds after the first frame; None for a constant rate."""
    if suffixes.may_move(path):
        stamps = moving_stamps(path)[:-1]
    else:
        with opened(path) as container:
            stream = video_stream(path, container)
            index = indexes.find(path, container, stream, _ALL)
            unit = float(stream.time_base or 0)
        stamps = index.stamps * unit if index.usable else _decoded_stamps(path)
    return None if len(stamps) < 2 or constant_rate(stamps) is not None else stamps - stamps[0]


def constant_rate(stamps: np.ndarray) -> float | None:
    """Frames per second for time stamps [n], n > 1, in seconds and ascending; None if the rate is variable.

    Variable: a frame lies more than 3/4 of a frame off the grid of the average rate, as if two frames were missing.
    """
    rate = average_rate(stamps)
    off = np.abs(stamps - stamps[0] - np.arange(len(stamps)) / rate).max()
    return rate if off <= 0.75 / rate + _ROUNDING_S else None


def average_rate(stamps: np.ndarray) -> float:
    span = float(stamps[-1] - stamps[0])
    return (len(stamps) - 1) / span if span > 0 else 1.0


def moments(path: str, stamps: np.ndarray, indices: Sequence[int], fps: float) -> list[int]:
    """Numbers of the frames shown i / fps seconds after the first, for each i in `indices`. DataError beyond the last
    frame.
    """
    times = np.asarray(indices, np.float64) / fps
    if times.max() > stamps[-1] + 1 / fps + _ROUNDING_S:
        raise past_the_end(path, int((stamps[-1] + 1 / fps) * fps), int(max(indices)))
    return (np.searchsorted(stamps, times + _ROUNDING_S, side="right") - 1).tolist()


def _decoded_stamps(path: str) -> np.ndarray:
    """Time stamps found by decoding the whole file, for containers and codecs whose packets lack them."""
    with opened(path) as container:
        decoding = Decoding(path, container)
        stamps = [frame.pts for frame, _ in decoding]
        unit = float(decoding.stream.time_base or 0)
    known = all(stamp is not None for stamp in stamps)
    return np.array(stamps if known else range(len(stamps)), np.float64) * unit
