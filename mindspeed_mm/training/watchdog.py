"""Reports and ends a run that hangs: every rank prints its stacks, and one rank names the ranks that are behind.

Collectives have a timeout, but a rank that waits for a disk, a worker or a lock has none. After the end torchrun
restarts the job (--max-restarts), which continues from its last checkpoint. Work that makes progress is not a hang,
however long it takes and whichever rank does it: see `parallel/pulse.py`.
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

_OTHERS_S = 5.0  # seconds for the rank that reports on all ranks, before the first exit makes torchrun end the others


class Watchdog:
    """Ends the process when no rank has shown progress for `minutes`."""

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
        """Records that this rank has just finished `what` of an iteration."""
        self._pulse.beat(what, iteration)

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds / 10)):
            if self._pulse.idle_s() > self._seconds:
                self._report()
                os._exit(EXIT_CODE)

    def _report(self) -> None:
        """Prints this rank's stacks; one rank also prints the last work of every rank. All watchdogs fire at about the
        same time.
        """
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
        except RuntimeError:  # the store died with the process that held it
            return

    def _table(self) -> list[str]:
        """One line per state that ranks are in, the ranks that are behind first."""
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
