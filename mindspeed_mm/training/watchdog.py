"""A run that hangs says where: every rank prints its stack, the slowest rank is named, and the process ends.

Collectives have a timeout of their own, but a rank that waits for a disk, a worker or a lock has none. torchrun then
restarts the job (--max-restarts), which continues from its last checkpoint.
"""

import faulthandler
import os
import sys
import threading
import time

import torch.distributed as dist

from mindspeed_mm.training.heartbeat import EXIT_CODE


class Watchdog:
    """Ends the process when `beat` was not called for `minutes`."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, minutes: float):
        """store: key-value store of all ranks, in which each rank leaves what it did last."""
        self._store = store
        self._seconds = 60 * minutes
        self._rank, self._world_size = rank, world_size
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat("start", 0)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        self._thread.join()

    def beat(self, what: str, iteration: int) -> None:
        """This rank is alive and has just finished `what` of an iteration."""
        self._last = time.monotonic()
        self._store.set(f"watchdog/{self._rank}", f"{iteration} {what}")

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() - self._last > self._seconds:
                self._report()
                os._exit(EXIT_CODE)

    def _report(self) -> None:
        """This rank's stacks, and what every rank did last. The others' watchdogs fire at about the same time."""
        print(f"[rank {self._rank}] no progress for {self._seconds:.0f} s; its threads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        last = {rank: self._last_of(rank) for rank in range(self._world_size)}
        behind = min(last.values())
        slowest = [rank for rank, value in last.items() if value == behind]
        for rank, (iteration, what) in last.items():
            mark = "  <- behind" if rank in slowest and len(slowest) < self._world_size else ""
            print(
                f"[rank {self._rank}] rank {rank} last finished {what} of iteration {iteration}{mark}", file=sys.stderr
            )
        sys.stderr.flush()

    def _last_of(self, rank: int) -> tuple[int, str]:
        key = f"watchdog/{rank}"
        try:
            if not self._store.check([key]):
                return -1, "nothing"
            iteration, what = self._store.get(key).decode().split(" ", 1)
            return int(iteration), what
        except RuntimeError:  # the store has gone with the rank that held it
            return -1, "nothing that can be read"
