"""Finds the slowest rank: compares the ranks' own time per step, wait for data and memory at intervals.

All ranks take the same time for a step, since they wait for each other. They differ in the time until their own
gradients are ready.
"""

import statistics

import torch
import torch.distributed as dist

from mindspeed_mm.parallel.context import ParallelContext


class Stragglers:
    """Sums up this rank's steps between two log lines."""

    def __init__(self, parallel: ParallelContext):
        self._parallel = parallel
        self._steps, self._own, self._data = 0, 0.0, 0.0

    def add(self, own_seconds: float, data_seconds: float) -> None:
        """Adds a step: seconds until this rank's gradients were ready, and the part of them spent waiting for data."""
        self._steps += 1
        self._own += own_seconds
        self._data += data_seconds

    def line(self, memory_gib: float) -> str | None:
        """Compares the slowest rank with the others over the steps since the last line; None with one rank.
        Collective.
        """
        steps = max(1, self._steps)
        mine = torch.tensor([self._own / steps, self._data / steps, memory_gib])
        self._steps, self._own, self._data = 0, 0.0, 0.0
        if self._parallel.world_size == 1:
            return None
        everyone = [torch.empty_like(mine) for _ in range(self._parallel.world_size)]
        dist.all_gather(everyone, mine, group=self._parallel.everyone)
        return describe(torch.stack(everyone).tolist())


def describe(ranks: list[list[float]]) -> str:
    """Formats the comparison. ranks: own seconds, seconds of waiting for data, and GiB per rank."""
    own, data, memory = (list(column) for column in zip(*ranks, strict=True))
    slowest, fullest = own.index(max(own)), memory.index(max(memory))
    return (
        f"slowest rank: {slowest}, own time per step (ms): {1000 * own[slowest]:.1f} (median {1000 * statistics.median(own):.1f}) | "
        f"its data wait (ms): {1000 * data[slowest]:.1f} (median {1000 * statistics.median(data):.1f}) | "
        f"its memory: {memory[slowest]:.2f} GiB (most: rank {fullest}, {memory[fullest]:.2f} GiB)"
    )
