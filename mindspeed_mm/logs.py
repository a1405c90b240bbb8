"""One logger for the package. A line is a sentence or `key=value`s that a script can parse."""

import logging
import os
import sys

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
    handler = logging.StreamHandler(sys.stdout)
    mark = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"[%(asctime)s] {mark}%(message)s", "%Y-%m-%d %H:%M:%S"))
    root.addHandler(handler)
    root.setLevel((level or os.environ.get("MM_LOG_LEVEL", "INFO")).upper() if rank == 0 else logging.WARNING)
    root.propagate = False
