"""Videos and images to disk: files that a browser plays, whole or not there."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

# Quality as the original's ffmpeg line. cpu-independent and a fixed number of threads make equal frames equal files: without,
# x264 gave two files for one video in 7 of 30 runs.
_X264 = {"crf": "23", "preset": "slow", "x264-params": "cpu-independent=1:threads=4"}
_MP4 = {"movflags": "+faststart"}  # the index first, so that a browser starts at once


def write_video(frames: np.ndarray, path: Path, fps: float) -> None:
    """H.264 yuv420p mp4 of frames [T,H,W,3] uint8. Odd sizes lose nothing: the last row or column is repeated once."""
    _check(frames, path)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    temporary = path.with_name(f".{path.name}.tmp")
    with av.open(str(temporary), "w", format="mp4", options=_MP4) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=_X264)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)


def write_image(frames: np.ndarray, path: Path) -> None:
    """PNG of the one frame of frames [1,H,W,3] uint8."""
    _check(frames, path)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.fromarray(frames[0]).save(temporary, format="PNG")
    temporary.replace(path)


def _check(frames: np.ndarray, path: Path) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"{path.name}: frames are {frames.dtype} {list(frames.shape)}, need uint8 [T,H,W,3]")
    path.parent.mkdir(parents=True, exist_ok=True)
