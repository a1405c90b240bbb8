"""Measures the content of a video: colour, shape, direction and background of one moving object.

Nothing here is learned or depends on the prompt. A video without one compact object on an even background, such as a
blank picture or noise, gets None for every answer.
"""

import dataclasses

import numpy as np
from clips import BACKGROUNDS, COLOURS, DIRECTIONS, HALF_EXTENT, SHAPES, coverage

_LEAST_CONTRAST = 60.0  # RGB distance of object and background; the set's least is 128, white on grey
_AREA = (0.04, 0.4)  # share of the picture that an object covers; the set's are 0.11 to 0.16
_LEAST_FILL = 0.5  # share of its bounding box that an object fills; a circle fills four fifths
_LEAST_FRAMES = 2 / 3  # share of the frames in which the object must be found
_LEAST_OVERLAP = 0.6  # intersection over union with the best shape
_LEAST_PATH = 0.15  # of the picture's size; the set's objects move 0.38 or more
_MOST_DISTANCE = 90.0  # RGB distance to the nearest named colour; the set's colours are 130 apart or more


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Measured answers; None for a question without a clear answer."""

    colour: str | None = None
    shape: str | None = None
    direction: str | None = None
    background: str | None = None


def measure(frames: np.ndarray) -> Answer:
    """The answer for a video [T,H,W,3] uint8."""
    pixels = frames.astype(np.float32)
    behind = np.median(pixels.reshape(-1, 3), axis=0)  # an object covers less than half of the picture
    background = _nearest(behind, BACKGROUNDS)
    distance = np.linalg.norm(pixels - behind, axis=-1)
    contrast = np.percentile(distance, 97)  # the smallest object covers 11 %
    if contrast < _LEAST_CONTRAST:
        return Answer(background=background)
    masks = distance > contrast / 2
    found = [mask for mask in masks if _is_object(mask)]
    if len(found) < _LEAST_FRAMES * len(frames):
        return Answer(background=background)
    return Answer(
        colour=_nearest(np.median(pixels[distance > 0.8 * contrast], axis=0), COLOURS),
        shape=_shape(found),
        direction=_direction(found),
        background=background,
    )


def _is_object(mask: np.ndarray) -> bool:
    """True if a mask [H,W] is one compact object of a plausible size."""
    area = mask.sum()
    if not _AREA[0] <= area / mask.size <= _AREA[1]:
        return False
    top, bottom, left, right = _box(mask)
    return area >= _LEAST_FILL * (bottom - top) * (right - left)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a mask, without rows and columns that hold less than two of its pixels."""
    rows, columns = (np.flatnonzero(mask.sum(axis) >= 2) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return 0, *mask.shape[:1], 0, *mask.shape[1:]
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def _shape(masks: list[np.ndarray]) -> str | None:
    """The shape that overlaps best when drawn into the bounding boxes."""
    overlaps = {shape: np.mean([_overlap(mask, shape) for mask in masks]) for shape in SHAPES}
    best = max(overlaps, key=overlaps.get)
    return best if overlaps[best] >= _LEAST_OVERLAP else None


def _overlap(mask: np.ndarray, shape: str) -> float:
    top, bottom, left, right = _box(mask)
    across, down = HALF_EXTENT[shape]
    radius = ((right - left) / across + (bottom - top) / down) / 4
    drawn = coverage(shape, (left + right) / 2, (top + bottom) / 2, radius) > 0.5
    return (mask & drawn).sum() / (mask | drawn).sum()


def _direction(masks: list[np.ndarray]) -> str | None:
    """Direction of the centre, if it moves along one axis without jumps."""
    centres = np.array([np.argwhere(mask).mean(0)[::-1] for mask in masks])  # [n,2] as (x, y)
    path = centres[-3:].mean(0) - centres[:3].mean(0)
    axis = int(np.abs(path[1]) > np.abs(path[0]))
    if abs(path[axis]) < max(_LEAST_PATH * masks[0].shape[0], 2 * abs(path[1 - axis])):
        return None
    if np.abs(np.diff(centres[:, axis])).sum() > 2 * abs(path[axis]):
        return None
    unit = np.sign(path[axis])
    wanted = (unit, 0) if axis == 0 else (0, unit)
    return next(name for name, step in DIRECTIONS.items() if step == wanted)


def _nearest(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str | None:
    distances = {name: float(np.linalg.norm(colour - np.array(reference))) for name, reference in names.items()}
    best = min(distances, key=distances.get)
    return best if distances[best] <= _MOST_DISTANCE else None
