"""Tracks the progress of a run: each rank reports finished pieces of work, and a waiting rank checks all ranks.

A piece takes seconds, or minutes at most: a step, a batch, a denoising step, some MiB of a file. So ranks, also idle
ones, can tell long work from a hang.
"""

import functools
import time
from typing import Any

import torch.distributed as dist

_TELL_S = 0.5  # between two reports to the store, since pieces may be small
_LOOK_S = 0.5  # between two looks at the other ranks


class Pulse:
    """Reports this rank's progress, and gives the time since any rank's last report. Thread-safe."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, patience_s: float = 15 * 60):
        """store: shared by all ranks. patience_s: time without any rank's progress after which a waiting rank gives
        up.
        """
        self.rank, self.world_size = rank, world_size
        self.patience_s = patience_s
        self.iteration = 0
        self._shared = store
        self._mine = self._others = time.monotonic()
        self._told = self._looked = float("-inf")
        self._count = -1

    @functools.cached_property
    def store(self) -> dist.Store:
        """The store through its own connection, on which nothing may wait.

        A client holds a lock while it waits for a key, for minutes when torch sets up a communicator. Reports through
        that client would stop meanwhile.
        """
        shared: Any = self._shared  # torch's annotations lack `clone`
        return shared.clone()

    def beat(self, what: str, iteration: int | None = None) -> None:
        """Reports that this rank has just finished `what`. iteration: given at the end of a step; then every call is
        reported.
        """
        self._mine = now = time.monotonic()
        if iteration is not None:
            self.iteration = iteration
        elif now - self._told < _TELL_S:
            return
        self._told = now
        try:
            self.store.set(f"pulse/{self.rank}", f"{self.iteration} {what}")
            self.store.add("pulse/beats", 1)
        except RuntimeError:  # the store died with its process, which the heartbeat reports
            return

    def idle_s(self) -> float:
        """Seconds since the last report of any rank."""
        now = time.monotonic()
        if now - self._mine > _LOOK_S and now - self._looked > _LOOK_S:
            self._looked = now
            self._look(now)
        return now - max(self._mine, self._others)

    def last_of_all(self) -> dict[int, tuple[int, str]]:
        """Rank -> (iteration, last finished work), for ranks that have reported; empty if the store is gone."""
        try:
            keys = {rank: f"pulse/{rank}" for rank in range(self.world_size)}
            said = {rank: key for rank, key in keys.items() if self.store.check([key])}
            values = [value.decode().split(" ", 1) for value in self.store.multi_get(list(said.values()))]
        except RuntimeError:
            return {}
        return {rank: (int(iteration), what) for rank, (iteration, what) in zip(said, values, strict=True)}

    def _look(self, now: float) -> None:
        try:
            count = self.store.add("pulse/beats", 0)
        except RuntimeError:
            return
        if count != self._count:
            self._count, self._others = count, now
