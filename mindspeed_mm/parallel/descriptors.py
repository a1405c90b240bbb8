"""Limits of open files and sockets: computes how many a run needs, and checks that the system allows them."""

import os
import resource
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.errors import ConfigError

_log = logs.get(__name__)
# Measured on gloo at 2, 4 and 8 ranks: 26, 30 and 35 sockets; the rest is for files, workers and pipes.
_ALONE, _PER_RANK = 96, 3
_STORE_ALONE, _STORE_PER_RANK = (
    64,
    2,
)  # in the process that holds the store of all ranks: torchrun, if it started us


def check(world_size: int, is_first: bool) -> None:
    """Raises this process's limit as far as needed and allowed. ConfigError gives the number if the limit is too low."""
    needed = _ALONE + _PER_RANK * world_size
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise ConfigError(_message(hard, needed, world_size))
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        _log.info(f"open files: the limit of this process is raised from {soft} to {needed}")
    launcher = _limit_of(os.getppid()) if is_first and "TORCHELASTIC_RUN_ID" in os.environ else None
    needed = _STORE_ALONE + _STORE_PER_RANK * world_size
    if launcher is not None and launcher < needed:
        raise ConfigError(f"torchrun: {_message(launcher, needed, world_size)}")


def _message(limit: int, needed: int, world_size: int) -> str:
    return (
        f"open files: the limit is {limit}, and {world_size} ranks need {needed} files and sockets in this process; run "
        f"`ulimit -n {needed}` before torchrun, or raise LimitNOFILE or nofile of the service or container"
    )


def _limit_of(pid: int) -> int | None:
    """Limit of another process; None if it has none or if it is unknown."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith("Max open files")), [])
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else None
