"""Gradient clipping by a fixed norm, or by the norm's moving average (v1.5 report, "Adaptive Grad Clipping").

The decision uses one number that all ranks share, so that every rank decides alike.
"""

import dataclasses
import math

# v1.5 report: clip beyond the mean + 3 sigma, treat as an error beyond the mean + 5 sigma, but never below a norm of 5.
_CLIP_SIGMAS = 3.0
_SKIP_SIGMAS = 5.0
_SKIP_FLOOR = 5.0
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """Decision about a step's gradients: multiply them by `scale`, or skip the step with a reason."""

    scale: float = 1.0
    threshold: float | None = None  # larger norms are clipped to it
    skip: str | None = None


class FixedClip:
    """Scales gradients with a norm above `limit` down to it; 0: no limit. A non-finite norm skips the step."""

    def __init__(self, limit: float):
        self.limit = limit

    def decide(self, norm: float) -> Decision:
        if not math.isfinite(norm):
            return Decision(skip=f"gradient norm {norm}")
        if not self.limit:
            return Decision()
        return Decision(scale=min(1.0, self.limit / (norm + _EPSILON)), threshold=self.limit)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Does nothing: there is no state."""


class AdaptiveClip:
    """Clips to mean + 3 sigma of the norms so far, skips beyond max(mean + 5 sigma, 5).

    mean and variance move with `decay` over the norms of steps that were neither clipped nor skipped. The first finite
    norm sets them to min(3 norm, 1) and 0, and is not clipped.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.mean: float | None = None
        self.variance = 0.0

    def decide(self, norm: float) -> Decision:
        if not math.isfinite(norm):
            return Decision(skip=f"gradient norm {norm}")
        if self.mean is None:
            if norm > 0:  # a zero would make the threshold zero for ever
                self.mean = min(3.0 * norm, 1.0)
            return Decision()
        sigma = math.sqrt(self.variance)
        threshold = self.mean + _CLIP_SIGMAS * sigma
        extreme = max(self.mean + _SKIP_SIGMAS * sigma, _SKIP_FLOOR)
        if norm > extreme:
            return Decision(threshold=threshold, skip=f"gradient norm {norm:.4g} is beyond {extreme:.4g}")
        if norm > threshold:
            return Decision(scale=1.0 / (norm / threshold + _EPSILON), threshold=threshold)
        self.mean = self.decay * self.mean + (1 - self.decay) * norm
        # The deviation uses the updated mean, as released.
        self.variance = self.decay * self.variance + (1 - self.decay) * (self.mean - norm) ** 2
        return Decision(threshold=threshold)

    def state_dict(self) -> dict:
        return {"mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict) -> None:
        """Restores the average. A run that clipped by a fixed norm has none: the next norm starts it."""
        self.mean, self.variance = state.get("mean"), state.get("variance", 0.0)
