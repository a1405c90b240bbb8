"""Writes videos and images atomically, in formats that browsers play."""

import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from mindspeed_mm import atomic

# Quality as in the original's ffmpeg command. cpu-independent and a fixed thread count give equal files for equal
# frames; without them x264 gave two files for one video in 7 of 30 runs.
_X264 = {"crf": "23", "preset": "slow", "x264-params": "cpu-independent=1:threads=4"}
_MP4 = {"movflags": "+faststart"}  # puts the index first, so that browsers start at once


def write_video(frames: Iterable[np.ndarray], path: Path, fps: float) -> None:
    """Writes frames [H,W,3] uint8, or an array [T,H,W,3], as H.264 yuv420p mp4.

    An odd size is padded: the last row or column is repeated once.
    """
    if isinstance(frames, np.ndarray):
        _check(frames, path)
    frames = iter(frames)
    first = next(frames)
    _check(first[None], path)
    with (
        atomic.replacing_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options=_MP4) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=_X264)
        stream.height, stream.width = (size + size % 2 for size in first.shape[:2])
        stream.pix_fmt = "yuv420p"
        for frame in itertools.chain((first,), frames):
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())


def write_image(frames: np.ndarray, path: Path) -> None:
    """Writes the single frame of frames [1,H,W,3] uint8 as PNG."""
    _check(frames, path)
    with atomic.replacing(path) as file:
        Image.fromarray(frames[0]).save(file, format="PNG")


def _check(frames: np.ndarray, path: Path) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"{path.name}: frames are {frames.dtype} {list(frames.shape)}, need uint8 [T,H,W,3]")
    path.parent.mkdir(parents=True, exist_ok=True)
