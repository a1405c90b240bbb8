"""Short captioned clips of moving coloured shapes, as real mp4 files with a data list."""

import json
import random
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindspeed_mm.sampling.writer import write_video

FRAMES, SIZE, FPS = 25, 64, 24
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 70),
    "blue": (50, 90, 230),
    "yellow": (235, 210, 50),
    "white": (240, 240, 240),
    "purple": (150, 60, 190),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BACKGROUNDS = {"dark": (20, 20, 30), "grey": (110, 110, 115)}


def write_clips(folder: Path, count: int, seed: int = 0) -> Path:
    """Write `count` clips, annotations.json and data.txt under `folder`; returns the path of data.txt."""
    rng = random.Random(seed)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in tqdm(range(count), desc="clips", unit="clip"):
        what = [rng.choice(list(names)) for names in (COLOURS, SHAPES, DIRECTIONS, BACKGROUNDS)]
        path = folder / "clips" / f"{number:04d}.mp4"
        write_video(draw(*what, rng), path, FPS)
        rows.append(
            {
                "path": path.name,
                "cap": caption(*what),
                "num_frames": FRAMES,
                "fps": FPS,
                "resolution": {"height": SIZE, "width": SIZE},
            }
        )
    (folder / "annotations.json").write_text(json.dumps(rows, indent=1))
    data_list = folder / "data.txt"
    data_list.write_text(f"{folder / 'clips'},{folder / 'annotations.json'}\n")
    return data_list


def caption(colour: str, shape: str, direction: str, background: str) -> str:
    return f"a {colour} {shape} moving {direction} on a {background} background"


def draw(colour: str, shape: str, direction: str, background: str, rng: random.Random) -> np.ndarray:
    """Frames [T,H,W,3] uint8 of one shape that crosses the picture at a steady speed."""
    radius = rng.uniform(8, 12)
    dx, dy = DIRECTIONS[direction]
    speed = (SIZE - 2 * radius) / (FRAMES - 1)
    across = rng.uniform(radius, SIZE - radius)
    x = radius if dx > 0 else SIZE - radius if dx < 0 else across
    y = radius if dy > 0 else SIZE - radius if dy < 0 else across
    frames = np.empty((FRAMES, SIZE, SIZE, 3), dtype=np.float32)
    for number in range(FRAMES):
        inside = coverage(shape, x + dx * speed * number, y + dy * speed * number, radius)[..., None]
        frames[number] = inside * np.array(COLOURS[colour]) + (1 - inside) * np.array(BACKGROUNDS[background])
    return frames.round().astype(np.uint8)


def coverage(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """How much of each pixel [H,W] a shape covers, with soft edges of about a pixel."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5
    u, v = columns - x, rows - y
    if shape == "circle":
        distance = np.hypot(u, v) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(u), np.abs(v)) - 0.85 * radius
    else:  # a triangle with a level base
        distance = np.maximum(np.abs(u) * 0.866 - v * 0.5, v) - 0.6 * radius
        distance = np.maximum(distance, np.abs(u) * 0.866 + (-v) * 0.5 - 0.6 * radius)
    return np.clip(0.5 - distance, 0.0, 1.0)
