"""Caches the inner blocks' residuals of an earlier sampling step, to add them again instead of running the blocks.

From one sampling step to the next, the residual of all blocks between the first and the last few changes slowly (like
the deep features of DeepCache, 2312.00858). The network chooses the blocks; the sampling loop owns the cache and sets
`reuse`.
"""

from torch import Tensor


class StepCache:
    """Residuals of the inner blocks on a network's streams, for one half of guidance or one batch.

    `reuse` is set before each forward: False runs the inner blocks and stores their residuals, True adds the stored
    ones.
    """

    def __init__(self):
        self.reuse = False
        self.residuals: list[Tensor] | None = None  # of each stream, this rank's tokens

    def keep(self, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> None:
        self.residuals = [last - first for first, last in zip(before, after, strict=True)]

    def add(self, *streams: Tensor) -> tuple[Tensor, ...]:
        if self.residuals is None:
            raise ValueError("the step cache is empty: the first step has to run all blocks")
        return tuple(stream + residual for stream, residual in zip(streams, self.residuals, strict=True))
