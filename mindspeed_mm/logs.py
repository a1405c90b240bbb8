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
    """Send the package's log to stdout: rank 0 at `level` (default INFO, or $MM_LOG_LEVEL), the others from WARNING.

    Safe to call again: the rank is not known before the process group starts, so entry points call it twice.
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
    """Something that may fail without ending anything: the first failure is said, and that it works again."""

    def __init__(self, log: logging.Logger, what: str):
        self._log, self._what = log, what
        self.failing = False

    def __call__(self, action: Callable[[], object]) -> bool:
        """Whether it worked."""
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
    """Lines to stdout. A reader that has gone, or a full disk, costs the lines and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):
            super().handleError(record)
            return
        discard_what_nobody_reads()


def discard_what_nobody_reads() -> None:
    """Let stdout and stderr go nowhere if their pipe's reader has gone: every later line would fail again."""
    poll = getattr(select, "poll", None)
    for number in (1, 2):
        if poll is None:
            return
        asked = poll()
        asked.register(number, 0)  # errors are always told
        if any(event & select.POLLERR for _, event in asked.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
