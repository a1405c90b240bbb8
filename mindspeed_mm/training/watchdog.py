"""A run that hangs says where: every rank prints its stack, the slowest rank is named, and the process ends.

Collectives have a timeout of their own, but a rank that waits for a disk, a worker or a lock has none. torchrun then
restarts the job (--max-restarts), which continues from its last checkpoint. Work that goes on is no hang, however long it
takes and whichever rank does it: see `parallel/pulse.py`.
"""

import collections
import faulthandler
import os
import sys
import threading
import time

from mindspeed_mm.parallel.meeting import ranks_of
from mindspeed_mm.parallel.pulse import Pulse
from mindspeed_mm.training.heartbeat import EXIT_CODE

_OTHERS_S = (
    5.0  # for the rank that tells about all of them, before the first end of a process makes torchrun end the others
)


class Watchdog:
    """Ends the process when no rank has given a sign of progress for `minutes`."""

    def __init__(self, pulse: Pulse, minutes: float):
        self._pulse = pulse
        self._seconds = 60 * minutes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat("the start", self._pulse.iteration)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        self._thread.join()

    def beat(self, what: str, iteration: int) -> None:
        """This rank is alive and has just finished `what` of an iteration."""
        self._pulse.beat(what, iteration)

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds / 10)):
            if self._pulse.idle_s() > self._seconds:
                self._report()
                os._exit(EXIT_CODE)

    def _report(self) -> None:
        """This rank's stacks; and, from one rank, what every rank did last. All watchdogs fire at about the same time."""
        rank = self._pulse.rank
        print(f"[rank {rank}] no progress for {self._seconds:.0f} s; its threads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        try:
            if self._pulse.store.add("watchdog/reports", 1) == 1:
                print("\n".join(self._table()), file=sys.stderr, flush=True)
                self._pulse.store.set("watchdog/told", "")
            until = time.monotonic() + _OTHERS_S
            while time.monotonic() < until and not self._pulse.store.check(["watchdog/told"]):
                time.sleep(0.1)
        except RuntimeError:  # the store has gone with the process that held it
            return

    def _table(self) -> list[str]:
        """A line for each state that ranks are in, those that are behind first."""
        states = collections.defaultdict(list)
        last = self._pulse.last_of_all()
        for rank in range(self._pulse.world_size):
            states[last.get(rank, (-1, "nothing"))].append(rank)
        behind = min(iteration for iteration, _ in states)
        lines = []
        for (iteration, what), ranks in sorted(states.items()):
            mark = "  <- behind" if iteration == behind and any(other != behind for other, _ in states) else ""
            who = ranks_of(ranks).rsplit(" ", 1)[0]
            lines.append(f"[rank {self._pulse.rank}] {who} last finished {what} of iteration {iteration}{mark}")
        return lines
