"""Solvers of the sampling equation dx/dsigma = v(x, sigma), from noise at sigma 1 to data at 0.

Each solver is a row of a table whose keys are the choices of `diffusion.solver`. The functions are linear combinations
of tensors with plain numbers and import no torch. "Order" is that of the error in the size of the steps;
tests/diffusion/test_solvers.py measures it on an equation with a known solution.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """State at the beginning of a step: noise level, latents in fp32, the velocity there, and its clean estimate."""

    sigma: float
    latents: Any
    velocity: Any
    clean: Any

    @classmethod
    def at(cls, sigma: float, latents: Any, velocity: Any) -> "Point":
        return cls(sigma, latents, velocity, latents - sigma * velocity)


# (latents, sigma) -> velocity
Evaluate = Callable[[Any, float], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Moved:
    """Result of a step: the latents at its end, and those at its beginning, which some solvers correct."""

    latents: Any
    begin: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Solver:
    """step(points, following, evaluate) -> Moved: takes the last of the points to the noise level `following`.

    The points before it are those of earlier steps, the latest last, as many as `memory`. evaluations: of the
    velocity in one step; the last step always takes one.
    """

    step: Callable[[Sequence[Point], float, Evaluate], Moved]
    memory: int = 0
    evaluations: int = 1


def _euler(points: Sequence[Point], following: float, evaluate: Evaluate) -> Moved:
    """Order 1."""
    now = points[-1]
    return Moved(now.latents + (following - now.sigma) * now.velocity, now.latents)


def _heun(points: Sequence[Point], following: float, evaluate: Evaluate) -> Moved:
    """Order 2, two evaluations: the mean of the velocities at both ends of the step. The last step is Euler's."""
    now, ahead = points[-1], _euler(points, following, evaluate).latents
    if following == 0:
        return Moved(ahead, now.latents)
    mean = (now.velocity + evaluate(ahead, following)) / 2
    return Moved(now.latents + (following - now.sigma) * mean, now.latents)


def _adams(points: Sequence[Point], following: float, evaluate: Evaluate) -> Moved:
    """Order 2, one evaluation: the velocity goes on as a line through the last two (Adams-Bashforth, uneven steps)."""
    if len(points) < 2:
        return _euler(points, following, evaluate)
    before, now = points[-2:]
    step, earlier = following - now.sigma, now.sigma - before.sigma
    slope = (now.velocity - before.velocity) / earlier
    return Moved(now.latents + step * (now.velocity + step / 2 * slope), now.latents)


def _dpm(points: Sequence[Point], following: float, evaluate: Evaluate) -> Moved:
    """DPM-Solver++(2M) (2211.01095, algorithm 2) on the path of flow matching: alpha = 1 - sigma. Order 2, one evaluation.

    The clean estimate goes on as a line in lambda = log(alpha / sigma), where lambda is infinite at both ends: there the
    step is of first order, which is Euler's.
    """
    now = points[-1]
    return Moved(_predicted(now.latents, now, points[:-1], following), now.latents)


def _unipc(points: Sequence[Point], following: float, evaluate: Evaluate) -> Moved:
    """UniPC (2302.04867) of order 2 with B2(h), on clean estimates: the predictor is DPM-Solver++(2M).

    The velocity at the end of a step first corrects that step, then predicts the next one: one evaluation.
    """
    now = points[-1]
    begin = now.latents if len(points) < 2 else _corrected(points)
    return Moved(_predicted(begin, now, points[:-1], following), begin)


def _predicted(begin: Any, now: Point, earlier: Sequence[Point], following: float) -> Any:
    """From the latents `begin` to the noise level `following` with the clean estimates of `now` and of the step before it."""
    estimate = now.clean
    step = _log_ratio(following) - _log_ratio(now.sigma)
    if earlier and math.isfinite(step):
        ratio = (_log_ratio(now.sigma) - _log_ratio(earlier[-1].sigma)) / step
        estimate = estimate + (estimate - earlier[-1].clean) / (2 * ratio)
    return following / now.sigma * begin + (1 - following / now.sigma) * estimate


def _corrected(points: Sequence[Point]) -> Any:
    """The latents of the last point, corrected by its own clean estimate (2302.04867, UniC; B2(h) = e^h - 1)."""
    before, now = points[-2:]
    step = _log_ratio(now.sigma) - _log_ratio(before.sigma)
    change = now.clean - before.clean
    if math.isfinite(step):
        rise = math.expm1(-step)
        first = (rise / -step - 1) / rise
        second = 2 * (first * rise / -step - 0.5) / rise
    else:
        first = second = 0.5  # from pure noise: the mean of both estimates
    estimate = before.clean + first * change
    if len(points) > 2 and math.isfinite(step):
        place = (_log_ratio(points[-3].sigma) - _log_ratio(before.sigma)) / step  # of the point before, in steps
        share = (first - second) / (1 - place)
        old = (points[-3].clean - before.clean) / place
        estimate = before.clean + share * old + (first - share) * change
    return now.sigma / before.sigma * before.latents + (1 - now.sigma / before.sigma) * estimate


def _log_ratio(sigma: float) -> float:
    """lambda = log((1 - sigma) / sigma)."""
    if sigma >= 1:
        return -math.inf
    return math.inf if sigma <= 0 else math.log((1 - sigma) / sigma)


SOLVERS = {
    "euler": Solver(_euler),
    "heun": Solver(_heun, evaluations=2),
    "adams": Solver(_adams, memory=1),
    "dpm++": Solver(_dpm, memory=1),
    "unipc": Solver(_unipc, memory=2),
}
