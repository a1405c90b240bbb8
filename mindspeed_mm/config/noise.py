"""Noise-level schemes of training: the distribution of levels, and the weight of a sample's loss at its level.

Each scheme is a row of a table whose keys are the choices of `diffusion.weighting_scheme`. The functions work on
tensors but import no torch. Densities and weights: SD3 (2403.03206), section 3.1 and appendix.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol


class Draws(Protocol):
    """Random numbers [B] of one batch, drawn on request."""

    def normal(self, mean: float, std: float) -> Any: ...

    def uniform(self) -> Any: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Weighting:
    """draw(config, draws) -> levels [B] in [0, 1], before the shift. weight(sigma [B]) -> weights of the loss [B]."""

    draw: Callable[[Any, Draws], Any]
    weight: Callable[[Any], Any]


def _logit_normal(config, draws: Draws):
    return draws.normal(config.logit_mean, config.logit_std).sigmoid()


def _mode(config, draws: Draws):
    u = draws.uniform()
    return 1 - u - config.mode_scale * ((math.pi * u / 2).cos() ** 2 - 1 + u)


def _uniform(config, draws: Draws):
    return draws.uniform()


def _ones(sigma):
    return sigma.new_ones(sigma.shape)


WEIGHTINGS = {
    "logit_normal": Weighting(_logit_normal, _ones),
    "mode": Weighting(_mode, _ones),
    "uniform": Weighting(_uniform, _ones),
    "sigma_sqrt": Weighting(_uniform, lambda sigma: sigma**-2.0),
    "cosmap": Weighting(_uniform, lambda sigma: 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))),
}
