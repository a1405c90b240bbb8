"""Folders of small videos whose movement is known, with records as `sample` writes them."""

import json
from pathlib import Path

import numpy as np

from mindspeed_mm.sampling.writer import write_video

FPS = 8
SIZE = 48


def moving(speed: float, frames: int = 9) -> np.ndarray:
    """Frames uint8 [T,48,48,3] of a bright square that moves to the right, in pixels per frame."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    left = 6 + speed * np.arange(frames)[:, None, None]
    inside = np.clip(np.minimum(columns - left, left + 16 - columns) + 0.5, 0, 1) * (abs(rows - 24) < 10)
    return (40 + 180 * inside[..., None] * np.ones(3)).round().astype(np.uint8)


def write_folder(folder: Path, videos: dict[str, np.ndarray], records: bool = True) -> Path:
    """Videos by prompt as video_000000.mp4 ..., with records unless they are not wanted."""
    for number, (prompt, frames) in enumerate(videos.items()):
        name = f"video_{number:06d}"
        write_video(frames, folder / f"{name}.mp4", FPS)
        if records:
            entry = {"status": "done", "file": f"{name}.mp4", "sample": {"prompt": prompt, "seed": 7 + number}}
            (folder / f"{name}.json").write_text(json.dumps(entry))
    return folder
