"""Sockets: few per process, and a limit that is too low for them is named at the start."""

import os
import resource
from pathlib import Path

import pytest
from ranks import run_ranks

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.parallel import descriptors
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.hosts import Hosts


def sockets() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(entry).startswith("socket:")
        except OSError:
            continue
    return found


def sockets_of_a_layout(share_memory: bool) -> int:
    before = sockets()
    parallel = ParallelContext.start(tensor_size=2, share_memory=share_memory)
    Hosts(parallel).gather(parallel.rank)
    return sockets() - before


@pytest.mark.parametrize("share_memory", [False, True])
def test_groups_that_carry_nothing_open_no_connections(share_memory):
    """46 at 4 ranks when each of Megatron's groups connected all of its members at once."""
    assert max(run_ranks(sockets_of_a_layout, 4, share_memory)) <= 30


@pytest.fixture
def limits(monkeypatch):
    """This process's limits, as the test sets them; notes what is asked for."""
    now = {"limits": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: now["limits"])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: now.update(limits=new))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return now


def test_enough_is_left_alone_and_too_little_is_raised(limits):
    descriptors.check(8, is_first=True)
    assert limits["limits"] == (1024, 4096)
    descriptors.check(512, is_first=True)
    assert limits["limits"] == (1632, 4096)


def test_a_limit_that_cannot_be_raised_is_named_with_the_number(limits):
    limits["limits"] = (110, 110)
    with pytest.raises(ConfigError, match=r"the limit is 110, and 8 ranks need 120 .*`ulimit -n 120` before torchrun"):
        descriptors.check(8, is_first=False)


def test_the_launcher_holds_a_connection_of_every_rank(limits, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(descriptors, "_limit_of", lambda pid: 1024)
    descriptors.check(256, is_first=True)
    with pytest.raises(ConfigError, match="torchrun: open files: the limit is 1024, and 512 ranks need 1088"):
        descriptors.check(512, is_first=True)


def test_the_limit_of_another_process_is_read():
    assert descriptors._limit_of(os.getpid()) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert descriptors._limit_of(2**30) is None
