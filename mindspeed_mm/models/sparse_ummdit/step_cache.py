"""What the inner stages added at an earlier noise level, to be added again instead of running them.

From one sampling step to the next, the residual of all stages between the first and the last changes slowly (as the deep
features of DeepCache, 2312.00858). The sampling loop owns the cache and decides by the number of the step alone, so that
every rank of every layout decides alike.
"""

from torch import Tensor


class StepCache:
    """The residuals of the inner stages on both streams, for one half of guidance or one batch.

    `reuse` is set before each forward: False runs the inner stages and keeps what they add, True adds that again.
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
    """Whether step `number` (from 0) of `total` adds what an earlier step kept, if every `every`-th step runs whole.

    The first fifth, where the layout of the video settles, and the last step run whole.
    """
    first = -(-total // 5)
    return every > 1 and first <= number < total - 1 and (number - first + 1) % every != 0
