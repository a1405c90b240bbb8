"""Signs of life of every rank, so that when one dies the others can name it and end instead of waiting for it.

A collective with a dead rank fails with "connection closed by peer" at best, and waits for its timeout at worst. The
signs go through the key-value store of the process group, which torchrun holds outside of the ranks.
"""

import os
import sys
import threading
import time

import torch.distributed as dist

from mindspeed_mm.errors import RankLost

_INTERVAL_S = 2.0
_DONE = b"done"
EXIT_CODE = 75  # EX_TEMPFAIL: trying again may help


class Heartbeat:
    """Beats in a thread of its own between `with`'s ends; every rank watches the next one."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, gone_after_s: float = 60.0):
        """gone_after_s: without a sign of a rank for this long, the others end with EXIT_CODE."""
        self._store = store
        self._rank, self._world_size = rank, world_size
        self._gone_after_s = gone_after_s
        self._count = 0
        self._next = (rank + 1) % world_size
        self._seen: tuple[bytes | None, float] = (None, time.monotonic())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Turns the failure of a collective into RankLost if a rank is gone."""
        lost = self._lost() if isinstance(error, RuntimeError) else []
        self._stop.set()
        self._thread.join()
        if error is None:
            self._store.set(self._key(self._rank), _DONE)
        if lost:
            raise RankLost(f"{_names(lost)} gone, the others cannot go on; its own output says why") from error

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            try:
                self._beat()
                message = self._bad_news()
            except RuntimeError:
                message = "rank 0, which holds the store of the process group, is gone"
            if message is not None and not self._stop.is_set():
                print(f"[rank {self._rank}] {message}; ending", file=sys.stderr, flush=True)
                os._exit(EXIT_CODE)

    def _beat(self) -> None:
        self._count += 1
        self._store.set(self._key(self._rank), str(self._count))

    def _bad_news(self) -> str | None:
        """What another rank has found, or that the next rank is gone, which the others are then told."""
        if self._store.check(["gone"]):
            return self._store.get("gone").decode()
        sign, now = self._sign(self._next), time.monotonic()
        if sign != self._seen[0] or sign == _DONE:
            self._seen = (sign, now)
        if now - self._seen[1] < self._gone_after_s:
            return None
        message = f"rank {self._next} is gone: no sign of life for {self._gone_after_s:.0f} s"
        self._store.set("gone", message)
        return message

    def _lost(self) -> list[int]:
        """Ranks that give no new sign within a few intervals."""
        try:
            before = [self._sign(rank) for rank in range(self._world_size)]
            time.sleep(2.5 * _INTERVAL_S)
            after = [self._sign(rank) for rank in range(self._world_size)]
        except RuntimeError:
            return [0]  # the store has gone with the rank that held it
        pairs = enumerate(zip(before, after, strict=True))
        return [rank for rank, (old, new) in pairs if old == new and new != _DONE]

    def _sign(self, rank: int) -> bytes | None:
        key = self._key(rank)
        return self._store.get(key) if self._store.check([key]) else None

    def _key(self, rank: int) -> str:
        return f"alive/{rank}"


def _names(ranks: list[int]) -> str:
    return f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} are"
