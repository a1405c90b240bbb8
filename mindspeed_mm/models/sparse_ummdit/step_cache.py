"""Caches the inner stages' residuals of an earlier sampling step, to add them again instead of running the stages.

From one sampling step to the next, the residual of all stages between the first and the last changes slowly (like the
deep features of DeepCache, 2312.00858). The sampling loop owns the cache and decides by the step's number alone, so
that every rank of every layout decides alike.
"""

from torch import Tensor


class StepCache:
    """Residuals of the inner stages on both streams, for one half of guidance or one batch.

    `reuse` is set before each forward: False runs the inner stages and stores their residuals, True adds the stored
    ones.
    """

    def __init__(self):
        self.reuse = False
        self.residuals: tuple[Tensor, Tensor] | None = None  # video [S,B,D], text [L,B,D]; this rank's tokens

    def keep(self, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> None:
        self.residuals = (after[0] - before[0], after[1] - before[1])

    def add(self, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        if self.residuals is None:
            raise ValueError("the step cache is empty: the first step has to run all stages")
        return video + self.residuals[0], text + self.residuals[1]


def reuses(number: int, total: int, every: int) -> bool:
    """True if step `number` (from 0) of `total` reuses an earlier step's residuals; every `every`-th step runs whole.

    The first fifth of the steps, which fixes the layout of the video, and the last step run whole.
    """
    first = -(-total // 5)
    return every > 1 and first <= number < total - 1 and (number - first + 1) % every != 0
