"""One logger for the package. A line is a sentence or `key=value`s that a script can parse."""

import logging
import os
import select
import sys
from collections.abc import Callable

_ROOT = "mindspeed_mm"


def get(name: str) -> logging.Logger:
    """Logger of a module; pass `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def setup(rank: int = 0, level: str | None = None) -> None:
    """Sends the package's log to stdout: rank 0 at `level` (default INFO, or $MM_LOG_LEVEL), other ranks from WARNING.

    May be called again: entry points call it before and after the process group starts, since only then the rank is
    known.
    """
    root = logging.getLogger(_ROOT)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = _Lines(sys.stdout)
    mark = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"[%(asctime)s] {mark}%(message)s", "%Y-%m-%d %H:%M:%S"))
    root.addHandler(handler)
    root.setLevel((level or os.environ.get("MM_LOG_LEVEL", "INFO")).upper() if rank == 0 else logging.WARNING)
    root.propagate = False


class Attempts:
    """An action that may fail without ending the program: logs its first failure, and its recovery."""

    def __init__(self, log: logging.Logger, what: str):
        self._log, self._what = log, what
        self.failing = False

    def __call__(self, action: Callable[[], object]) -> bool:
        """Runs an action. Returns True if it succeeded."""
        try:
            action()
        except Exception as error:
            if not self.failing:
                reason = " ".join(str(error).split()) or type(error).__name__
                self._log.error(f"{self._what}: cannot be written ({reason}); going on without it")
            self.failing = True
            return False
        if self.failing:
            self._log.info(f"{self._what}: is written again")
        self.failing = False
        return True


class _Lines(logging.StreamHandler):
    """Writes lines to stdout. A closed pipe or a full disk loses lines but raises no error."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):
            super().handleError(record)
            return
        discard_what_nobody_reads()


def discard_what_nobody_reads() -> None:
    """Redirects stdout and stderr to nowhere if the reader of their pipe has gone: every later line would fail again."""
    poll = getattr(select, "poll", None)
    for number in (1, 2):
        if poll is None:
            return
        asked = poll()
        asked.register(number, 0)  # errors are always reported
        if any(event & select.POLLERR for _, event in asked.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
