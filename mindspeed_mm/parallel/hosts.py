"""Exchanges small plain values between processes over the hosts' network (gloo), whatever the device.

The data side uses it to agree on lists, counts and choices. Nothing here touches a device or waits for one.
"""

import datetime
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mindspeed_mm.parallel.context import ParallelContext, joined

Value = TypeVar("Value")


class Hosts:
    """Two process groups: all processes, and those that share samples (TP x CP ranks of one data rank)."""

    def __init__(self, parallel: ParallelContext, patience_minutes: float = 24 * 60):
        """Collective. patience_minutes: time to wait for another process, which may be reading a list."""
        self.parallel = parallel
        self._all = self._same = None
        self._sharers = [parallel.rank]
        if parallel.world_size == 1:
            return
        patience = datetime.timedelta(minutes=patience_minutes)
        self._all = joined(dist.new_group(backend="gloo", timeout=patience))
        data_ranks = self.gather(parallel.data_rank)
        for data_rank in range(parallel.data_size):
            ranks = [rank for rank, other in enumerate(data_ranks) if other == data_rank]
            group = dist.new_group(ranks, backend="gloo", timeout=patience)
            if data_rank == parallel.data_rank:
                self._same, self._sharers = joined(group), ranks

    @property
    def sharers(self) -> list[int]:
        """Ranks that share this rank's samples, itself included, in order."""
        return self._sharers

    @property
    def is_first_of_samples(self) -> bool:
        """True on one of the ranks that share samples."""
        return self.sharers[0] == self.parallel.rank

    def gather_of_samples(self, value) -> list:
        """Values of the ranks that share samples, in the order of `sharers`; collective among them."""
        if len(self.sharers) == 1:
            return [value]
        values: list = [None] * len(self.sharers)
        dist.all_gather_object(values, value, group=self._same)
        return values

    def gather(self, value) -> list:
        """Values of all processes by rank; collective."""
        if self._all is None:
            return [value]
        values: list = [None] * self.parallel.world_size
        dist.all_gather_object(values, value, group=self._all)
        return values

    def total(self, values: Sequence[int]) -> list[int]:
        """Sum over all processes of each value; collective."""
        if self._all is None:
            return [*values]
        sums = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(sums, group=self._all)
        return sums.tolist()

    def unlike_first(self, value) -> str | None:
        """The first process whose value differs from rank 0's, as "rank 3 on node-b"; None if all agree; collective."""
        values = self.gather((value, socket.gethostname()))
        found = [(rank, host) for rank, (other, host) in enumerate(values) if other != values[0][0]]
        return f"rank {found[0][0]} on {found[0][1]}" if found else None

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives on the first process, which alone calls it; collective."""
        box: list[Any] = [make() if self.parallel.rank == 0 else None]
        if self._all is not None:
            dist.broadcast_object_list(box, src=0, group=self._all)
        return box[0]

    def first_decides(self, chosen: tuple[int, ...] | None, count: int) -> tuple[int, ...] | None:
        """Choice of the first rank that shares these samples: `count` whole numbers from 0, or None; collective among
        them.
        """
        if len(self.sharers) == 1:
            return chosen
        box = torch.tensor(chosen if chosen is not None else [-1] * count, dtype=torch.int64)
        dist.broadcast(box, src=self.sharers[0], group=self._same)
        return None if box[0] < 0 else tuple(box.tolist())
