"""Caches the inner blocks' residuals of an earlier sampling step, to add them again instead of running the blocks.

From one sampling step to the next, the residual of all blocks between the first stage and the last changes slowly (like
the deep features of DeepCache, 2312.00858). The network chooses the blocks. The sampling loop owns the cache; it decides
by the number of the step, or leaves the decision to the change of the first stage's residual, which is computed anyway.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mindspeed_mm.config.step_cache import CacheRule


def _alone(value: Tensor) -> Tensor:
    return value


class StepCache:
    """Residuals of the inner blocks on a network's streams, for one half of guidance or one batch.

    `reuse` is set before each forward: False runs the inner blocks and stores their residuals, True adds the stored ones,
    None leaves the decision to `reuses`, which says it in `reused`. `sigma` is that pass's noise level, by which forecasts
    go on.
    """

    def __init__(
        self, rule: CacheRule | None = None, together: Callable[[Tensor], Tensor] = _alone, deciding: int | None = None
    ):
        """together: sums a tensor over the ranks that share a sample, so that they decide alike. deciding: only the first
        samples of the batch decide, this many; None: all.
        """
        self.rule = rule or CacheRule()
        self.together = together
        self.deciding = deciding
        self.reuse: bool | None = False
        self.reused = False  # in the last pass
        self.sigma = 1.0
        self.runs = 0  # passes that ran the inner blocks
        self._firsts: list[tuple[float, list[Tensor]]] = []  # the same of the first stage
        self._coming: Tensor | None = None  # in this pass
        self._kept: list[tuple[float, list[Tensor]]] = []  # (sigma, residual of each stream), the latest last

    @property
    def is_empty(self) -> bool:
        return not self._kept

    def reuses(self, first: Tensor) -> bool:
        """Whether this pass adds stored residuals. first: the first stage's residual [S,B,D], this rank's tokens.
        Collective.
        """
        self._coming = first[:, : self.deciding]
        self.reused = bool(self.reuse) if self.reuse is not None or not self._firsts else self._is_near()
        return self.reused

    def _is_near(self) -> bool:
        """True if the first stage's residual is off by at most the rule's limit: from what is reused of the inner stages,
        the last one or a forecast.
        """
        if self.rule.limit is None:
            return False
        assert self._coming is not None, "it is of this pass"
        (expected,), now = self._expected(self._firsts), self._coming.float()
        off, size = self.together(torch.stack(((now - expected).abs().sum(), expected.abs().sum()))).tolist()
        return off <= self.rule.limit * size

    def keep(self, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> None:
        """Stores the residuals of a pass that ran the inner blocks."""
        self.runs += 1
        residuals = [last - first for first, last in zip(before, after, strict=True)]
        past = 1 if self.rule.forecast else 0
        self._kept = [*self._kept[len(self._kept) - past :], (self.sigma, residuals)]
        if self.rule.limit is not None and self._coming is not None:
            first = (self.sigma, [self._coming.float()])
            self._firsts = [*self._firsts[len(self._firsts) - past :], first]

    def add(self, *streams: Tensor) -> tuple[Tensor, ...]:
        if self.is_empty:
            raise ValueError("the step cache is empty: the first step has to run all blocks")
        return tuple(stream + residual for stream, residual in zip(streams, self._expected(self._kept), strict=True))

    def _expected(self, kept: list[tuple[float, list[Tensor]]]) -> list[Tensor]:
        """The stored residuals; as a forecast, on the line through the last two (TaylorSeer, 2503.06923, order 1)."""
        sigma, last = kept[-1]
        if len(kept) < 2:
            return last
        earlier, older = kept[-2]
        share = (self.sigma - sigma) / (sigma - earlier)
        return [new + share * (new - old) for new, old in zip(last, older, strict=True)]
