"""Whether a run makes progress: each rank says when it has done a piece of its work, and whoever waits looks at all ranks.

A piece is a step, a batch, a denoising step, some MiB of a file: what takes seconds, or minutes at most. So long work can
be told from a hang, also by the ranks that have nothing to do meanwhile.
"""

import functools
import time

import torch.distributed as dist

_TELL_S = 0.5  # between two signs that go to the store: pieces may be small
_LOOK_S = 0.5  # between two looks at the others


class Pulse:
    """The signs of progress of this rank, and how long ago any rank gave the last one. For any thread."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, patience_s: float = 15 * 60):
        """store: of all ranks. patience_s: how long whoever waits for another rank does without any rank's progress."""
        self.rank, self.world_size = rank, world_size
        self.patience_s = patience_s
        self.iteration = 0
        self._shared = store
        self._mine = self._others = time.monotonic()
        self._told = self._looked = float("-inf")
        self._count = -1

    @functools.cached_property
    def store(self) -> dist.Store:
        """The store through a connection of its own, on which nothing may wait.

        A client holds a lock while it waits for a key, as torch does for minutes when it sets up a communicator: signs of
        life through the same client would stop meanwhile.
        """
        return self._shared.clone()

    def beat(self, what: str, iteration: int | None = None) -> None:
        """This rank has just finished `what`; iteration: with the end of a step, and then each is told."""
        self._mine = now = time.monotonic()
        if iteration is not None:
            self.iteration = iteration
        elif now - self._told < _TELL_S:
            return
        self._told = now
        try:
            self.store.set(f"pulse/{self.rank}", f"{self.iteration} {what}")
            self.store.add("pulse/beats", 1)
        except RuntimeError:  # the store has gone with the process that held it, which the heartbeat says
            return

    def idle_s(self) -> float:
        """Seconds since the last sign of any rank."""
        now = time.monotonic()
        if now - self._mine > _LOOK_S and now - self._looked > _LOOK_S:
            self._looked = now
            self._look(now)
        return now - max(self._mine, self._others)

    def last_of_all(self) -> dict[int, tuple[int, str]]:
        """Rank -> (iteration, what it finished last), as far as ranks have said; empty if the store is gone."""
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
