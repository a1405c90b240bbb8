"""What of a clip the denoiser is shown in training: the kinds of image conditions, and their ratios.

Each kind is a row of `KINDS`: its name in data.json -> the function that draws what is known of a clip. The tasks are
those of Open-Sora Plan's inpainting model (report v1.2): one model learns all of them beside text-to-video.
"""

import dataclasses
import random
from collections.abc import Callable

from mindspeed_mm.schema import option

Extent = tuple[int, int, int]  # frames, height, width in pixels
Box = tuple[int, int, int, int]  # top, left, height, width in pixels

_MOST_FRAMES = 8  # known frames that the kind "frames" draws at most


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """Known pixels of a clip: `frames`, by their numbers, without the box `hidden` that is unknown in all of them."""

    frames: tuple[int, ...] = ()
    hidden: Box | None = None


def _text(rng: random.Random, extent: Extent, stride: int) -> Known:
    return Known()


def _first(rng: random.Random, extent: Extent, stride: int) -> Known:
    return Known((0,))


def _first_last(rng: random.Random, extent: Extent, stride: int) -> Known:
    return Known((0, extent[0] - 1))


def _frames(rng: random.Random, extent: Extent, stride: int) -> Known:
    count = rng.randint(1, min(_MOST_FRAMES, extent[0] - 1))
    return Known(tuple(sorted(rng.sample(range(extent[0]), count))))


def _extend(rng: random.Random, extent: Extent, stride: int) -> Known:
    """Whole latents: the first frame and 8, 16, ... more."""
    latents = (extent[0] - 1) // stride
    return Known(tuple(range(1 + stride * rng.randint(min(1, latents - 1), latents - 1))))


def _interpolate(rng: random.Random, extent: Extent, stride: int) -> Known:
    """Every k-th frame from the first to the last, k a divisor of the distance between them."""
    distance = extent[0] - 1
    every = rng.choice([step for step in range(2, distance + 1) if distance % step == 0] or [distance])
    return Known(tuple(range(0, extent[0], every)))


def _inpaint(rng: random.Random, extent: Extent, stride: int) -> Known:
    """A box with sides of a quarter to three quarters of the picture's is unknown in every frame."""
    frames, height, width = extent
    tall, wide = (max(1, round(side * rng.uniform(0.25, 0.75))) for side in (height, width))
    return Known(tuple(range(frames)), (rng.randint(0, height - tall), rng.randint(0, width - wide), tall, wide))


# name -> function of (random numbers, extent of the clip, frames of a latent)
KINDS: dict[str, Callable[[random.Random, Extent, int], Known]] = {
    "text": _text,
    "first": _first,
    "first_last": _first_last,
    "frames": _frames,
    "extend": _extend,
    "interpolate": _interpolate,
    "inpaint": _inpaint,
}
_OF_IMAGES = ("text", "inpaint")  # kinds that leave something unknown in a clip of one frame


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImageConditions:
    """`image_conditions` of dataset_param: how often each kind is drawn, in any unit; a kind left out never is."""

    text: float = option(0.0, at_least=0, at_most=1e6)  # nothing is shown: text-to-video
    first: float = option(0.0, at_least=0, at_most=1e6)
    first_last: float = option(0.0, at_least=0, at_most=1e6)
    frames: float = option(0.0, at_least=0, at_most=1e6)  # any frames
    extend: float = option(0.0, at_least=0, at_most=1e6)  # the beginning of the clip
    interpolate: float = option(0.0, at_least=0, at_most=1e6)  # every k-th frame
    inpaint: float = option(0.0, at_least=0, at_most=1e6)  # all but a box, in every frame

    def problems(self):
        if not any(self.ratio(kind) for kind in KINDS):
            yield "text", 'every ratio is 0; give some, for example {"text": 2, "first": 3, "extend": 1}'

    def ratio(self, kind: str) -> float:
        return getattr(self, kind)

    def shows_text_alone(self, rng: random.Random) -> bool:
        """Draws whether a sample is of the kind "text"."""
        return rng.random() * sum(map(self.ratio, KINDS)) < self.text

    def draw(self, rng: random.Random, extent: Extent, stride: int) -> Known:
        """Draws what is known of a clip that is not of the kind "text". stride: frames of a latent.

        A clip of one frame takes only kinds that leave something unknown.
        """
        kinds = [kind for kind in KINDS if kind != "text" and (extent[0] > 1 or kind in _OF_IMAGES)]
        weights = list(map(self.ratio, kinds))
        if not any(weights):
            return Known()
        return KINDS[rng.choices(kinds, weights)[0]](rng, extent, stride)
