"""Which rank holds up the others: each rank's own time of a step, its wait for data and its memory, compared now and then.

All ranks take the same time for a step, since they wait for each other in it. What differs is how long each needs until
its gradients are there.
"""

import statistics

import torch
import torch.distributed as dist

from mindspeed_mm.parallel.context import ParallelContext


class Stragglers:
    """Adds up the steps of this rank between two lines of the log."""

    def __init__(self, parallel: ParallelContext):
        self._parallel = parallel
        self._steps, self._own, self._data = 0, 0.0, 0.0

    def add(self, own_seconds: float, data_seconds: float) -> None:
        """A step: until this rank's gradients were there, and how much of that it waited for data."""
        self._steps += 1
        self._own += own_seconds
        self._data += data_seconds

    def line(self, memory_gib: float) -> str | None:
        """The slowest rank beside the others, of the steps since the last line; None with one rank. Collective."""
        steps = max(1, self._steps)
        mine = torch.tensor([self._own / steps, self._data / steps, memory_gib])
        self._steps, self._own, self._data = 0, 0.0, 0.0
        if self._parallel.world_size == 1:
            return None
        everyone = [torch.empty_like(mine) for _ in range(self._parallel.world_size)]
        dist.all_gather(everyone, mine, group=self._parallel.everyone)
        return describe(torch.stack(everyone).tolist())


def describe(ranks: list[list[float]]) -> str:
    """ranks: own seconds, seconds of waiting for data and GiB of each."""
    own, data, memory = (list(column) for column in zip(*ranks, strict=True))
    slowest, fullest = own.index(max(own)), memory.index(max(memory))
    return (
        f"slowest rank: {slowest}, own time per step (ms): {1000 * own[slowest]:.1f} (median {1000 * statistics.median(own):.1f}) | "
        f"its data wait (ms): {1000 * data[slowest]:.1f} (median {1000 * statistics.median(data):.1f}) | "
        f"its memory: {memory[slowest]:.2f} GiB (most: rank {fullest}, {memory[fullest]:.2f} GiB)"
    )
