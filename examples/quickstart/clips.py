"""The quickstart's set: short captioned clips of moving coloured shapes, as real mp4 files with a data list.

Captions come from a small grammar, 6 colours x 3 shapes x 4 directions x 2 backgrounds. Some of its colour, shape and
direction triples are held out: no clip of them is written, so that sampling them asks for something never seen.
"""

import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindspeed_mm.sampling.writer import write_video

FRAMES, SIZE, FPS = 17, 48, 8  # 8n+1 frames, the lengths that the autoencoder takes
COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 185, 70),
    "blue": (45, 85, 235),
    "yellow": (240, 215, 50),
    "white": (240, 240, 240),
    "purple": (165, 50, 200),
}
SHAPES = ("circle", "bar", "pillar")  # these differ by more than corners, of which small pictures leave little
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # y grows downwards
# Differs from every colour in brightness, since mp4 keeps brightness edges sharp but halves the resolution of colour.
BACKGROUNDS = {"dark": (20, 20, 30), "grey": (165, 165, 170)}
RADIUS = (12.0, 13.5)  # pixels
HALF_EXTENT = {"circle": (0.8, 0.8), "bar": (1.0, 0.45), "pillar": (0.45, 1.0)}  # across and down, in radii


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """The scene of a caption."""

    colour: str
    shape: str
    direction: str
    background: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} moving {self.direction} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """True for one in six triples of colour, shape and direction, spread evenly: none of these is trained on.

        Each colour is held out with two pairs of shape and direction, each shape with four, each direction with three.
        """
        places = (list(COLOURS).index(self.colour), SHAPES.index(self.shape), list(DIRECTIONS).index(self.direction))
        return (places[0] + 2 * places[1] + places[2]) % 6 == 0


def scenes(held_out: bool) -> list[Scene]:
    """The 24 held-out scenes of the grammar, or the 120 others."""
    every = (Scene(*words) for words in itertools.product(COLOURS, SHAPES, DIRECTIONS, BACKGROUNDS))
    return [scene for scene in every if scene.held_out == held_out]


def read_caption(caption: str) -> Scene:
    """The scene of a caption. Raises ValueError for a text outside the grammar."""
    words = caption.split()
    if len(words) == 9:
        scene = Scene(words[1], words[2], words[4], words[7])
        known = (scene.colour in COLOURS, scene.shape in SHAPES, scene.direction in DIRECTIONS)
        if all(known) and scene.background in BACKGROUNDS and scene.caption == caption:
            return scene
    raise ValueError(f"{caption!r}: not of the grammar 'a COLOUR SHAPE moving DIRECTION on a BACKGROUND background'")


def write_clips(folder: Path, count: int, seed: int = 0) -> Path:
    """Write `count` clips of the scenes that are not held out, and their list; returns the path of data.txt."""
    rng = random.Random(seed)
    wanted = scenes(held_out=False)
    order = list(itertools.islice(itertools.cycle(wanted), count))
    return write_list(folder, [(scene, draw(scene, rng)) for scene in tqdm(order, desc="drawing", unit="clip")])


def write_list(folder: Path, clips: Sequence[tuple[Scene, np.ndarray]]) -> Path:
    """Write clips [T,H,W,3] uint8 as mp4 files with annotations.json and data.txt; returns the path of data.txt."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (scene, frames) in enumerate(tqdm(clips, desc="writing mp4", unit="clip")):
        path = folder / "clips" / f"{number:04d}.mp4"
        write_video(frames, path, FPS)
        size = {"height": SIZE, "width": SIZE}
        rows.append(
            {"path": path.name, "cap": scene.caption, "num_frames": len(frames), "fps": FPS, "resolution": size}
        )
    (folder / "annotations.json").write_text(json.dumps(rows, indent=1))
    data_list = folder / "data.txt"
    data_list.write_text(f"{folder / 'clips'},{folder / 'annotations.json'}\n")
    return data_list


def draw(scene: Scene, rng: random.Random) -> np.ndarray:
    """Frames [T,H,W,3] uint8 of one shape that crosses the picture at a steady speed."""
    radius = rng.uniform(*RADIUS)
    low, high = radius + 1, SIZE - radius - 1  # the shape stays inside, with a pixel to spare
    dx, dy = DIRECTIONS[scene.direction]
    along = np.linspace(low, high, FRAMES)
    across = np.full(FRAMES, rng.uniform(low, high))
    x = across if dx == 0 else along[::dx]
    y = across if dy == 0 else along[::dy]
    colour, background = np.array(COLOURS[scene.colour]), np.array(BACKGROUNDS[scene.background])
    inside = np.stack([coverage(scene.shape, *centre, radius) for centre in zip(x, y, strict=True)])[..., None]
    return (inside * colour + (1 - inside) * background).round().astype(np.uint8)


def coverage(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Coverage of each pixel [H,W] by a shape, with soft edges of about a pixel; centre and radius in pixels."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5
    u, v = np.abs(columns - x), np.abs(rows - y)
    across, down = (extent * radius for extent in HALF_EXTENT[shape])
    distance = np.hypot(u, v) - across if shape == "circle" else np.maximum(u - across, v - down)
    return np.clip(0.5 - distance, 0.0, 1.0)
