"""Heartbeats of all ranks: when one rank dies, the others name it and end instead of waiting for it.

At best a collective with a dead rank fails with "connection closed by peer"; at worst it waits for its timeout.
Heartbeats pass through the key-value store of the process group, which torchrun holds outside of the ranks.
"""

import json
import os
import sys
import threading
import time

from mindspeed_mm.errors import RankLost
from mindspeed_mm.parallel.meeting import ranks_of
from mindspeed_mm.parallel.pulse import Pulse

_INTERVAL_S = 2.0
_LOOK_S = 2.5 * _INTERVAL_S  # a live rank beats within this time
_DONE = b"done"
EXIT_CODE = RankLost.exit_code


class Heartbeat:
    """Beats in its own thread while the context is open; every rank watches the next one."""

    def __init__(self, pulse: Pulse, gone_after_s: float = 60.0):
        """pulse: gives the store. gone_after_s: seconds without a beat of a rank, after which the others end with
        EXIT_CODE.
        """
        self._store = pulse.store
        self._rank, self._world_size = pulse.rank, pulse.world_size
        self._gone_after_s = gone_after_s
        self._count = 0
        self._next = (self._rank + 1) % self._world_size
        self._seen: tuple[bytes | None, float] = (None, time.monotonic())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Turns a failed collective into RankLost if a rank is gone."""
        lost = self._lost() if isinstance(error, RuntimeError) else []
        self._stop.set()
        self._thread.join()
        if error is None:
            self._store.set(self._key(self._rank), _DONE.decode())
        if lost:
            raise RankLost(f"{ranks_of(lost)} gone, the others cannot go on; its own output says why") from error

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
        """Another rank's finding, or this rank's: that the next rank is gone, which is then announced to the others."""
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
        """Ranks without a new beat within a few intervals. If several ranks ask at once, one looks for all."""
        try:
            look = f"lost/{self._store.add('lost/looks', 0)}"
            if self._store.add(f"{look}/askers", 1) == 1:
                found = self._silent()
                self._store.set(look, json.dumps(found))
                self._store.add("lost/looks", 1)  # ranks that ask from now on start a new look
                return found
            until = time.monotonic() + 2 * _LOOK_S
            while time.monotonic() < until:
                if self._store.check([look]):
                    return json.loads(self._store.get(look))
                time.sleep(0.2)
        except RuntimeError:
            return [0]  # the store died with rank 0, which held it
        return []

    def _silent(self) -> list[int]:
        before = self._signs()
        time.sleep(_LOOK_S)
        pairs = enumerate(zip(before, self._signs(), strict=True))
        return [rank for rank, (old, new) in pairs if old == new and new != _DONE]

    def _signs(self) -> list[bytes | None]:
        return [self._sign(rank) for rank in range(self._world_size)]

    def _sign(self, rank: int) -> bytes | None:
        key = self._key(rank)
        return self._store.get(key) if self._store.check([key]) else None

    def _key(self, rank: int) -> str:
        return f"alive/{rank}"
