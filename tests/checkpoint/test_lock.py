"""One run per folder: a second one is told who is there, and a dead one is in nobody's way."""

import contextlib
import dataclasses
import json
import os
import subprocess
import threading
import time
from unittest import mock

import pytest
from ranks import log_lines, run_ranks

from mindspeed_mm.checkpoint import lock, places
from mindspeed_mm.checkpoint.lock import Holder, RunLock
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.parallel.context import ParallelContext


def left_by(folder, **changes) -> None:
    """A lock as another process has left it."""
    folder.mkdir(exist_ok=True)
    (folder / lock.NAME).write_text(
        json.dumps(dataclasses.asdict(dataclasses.replace(Holder.me(), run="x", **changes)))
    )


def taken(folder) -> list[str]:
    """What the log says when this process takes the lock, and gives it back."""
    one = RunLock(folder)
    with log_lines() as lines:
        one.take()
    one.release()
    assert not list(folder.iterdir())
    return lines


def test_a_second_run_is_told_who_is_there(tmp_path):
    first = RunLock(tmp_path / "run")
    first.take()
    with pytest.raises(ConfigError, match=rf"in use by another run \(process {os.getpid()} on .*, since 20"):
        RunLock(tmp_path / "run").take()
    first.release()
    assert taken(tmp_path / "run") == []


def test_a_killed_run_on_this_machine_is_followed_at_once(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left_by(tmp_path, pid=ended.pid, born="1")
    (line,) = taken(tmp_path)
    assert f"taken over from process {ended.pid} on " in line and line.endswith("which has ended")


def test_a_run_that_is_ending_is_waited_for(tmp_path):
    """Its launcher was killed, and it is started again at once."""
    ending = subprocess.Popen(["sleep", "0.5"])
    left_by(tmp_path, pid=ending.pid, born=lock._born(ending.pid))
    assert taken(tmp_path)[-1].endswith("which has ended")
    ending.wait()


def test_another_process_with_its_number_is_not_it(tmp_path):
    left_by(tmp_path, pid=os.getppid(), born="1")
    assert taken(tmp_path)[0].endswith("which has ended")


def test_on_another_machine_the_age_of_the_last_sign_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_LOOK_S", 0.05)
    left_by(tmp_path, machine="another", host="node7")
    os.utime(tmp_path / lock.NAME, (time.time() - 100, time.time() - 100))
    assert "taken over from process" in (line := taken(tmp_path)[-1]) and "on node7" in line and "for 100 s" in line
    left_by(tmp_path, machine="another", host="node7")  # a fresh sign, and another one while we look
    beating = threading.Timer(0.2, lambda: os.utime(tmp_path / lock.NAME))
    beating.start()
    with pytest.raises(ConfigError, match="in use by another run .* on node7"):
        RunLock(tmp_path).take()
    beating.join()


def test_a_restart_by_torchrun_on_another_node_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    left_by(tmp_path, machine="another")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert taken(tmp_path)[-1].endswith("which torchrun has started again")


def test_a_lock_that_is_no_lock_ages_too(tmp_path):
    (tmp_path / lock.NAME).write_bytes(b"\xff{")
    os.utime(tmp_path / lock.NAME, (0, 0))
    assert "taken over from an unknown run" in taken(tmp_path)[-1]


def two_runs_at_once(folder) -> int:
    """Each of the ranks is a run of its own, as far as the folder goes. How often this one had it, and always alone."""
    ParallelContext.start()
    had = 0
    for _ in range(20):
        one = RunLock(folder)
        with contextlib.suppress(ConfigError):
            one.take()
            with open(folder / "alone", "x"):  # fails if it is there
                had += 1
                time.sleep(0.01)
            (folder / "alone").unlink()
            one.release()
        time.sleep(0.005)
    return had


def test_of_two_that_start_together_one_gets_it(tmp_path):
    left_by(tmp_path, pid=os.getpid(), born="1")  # and both find that it is dead
    assert sum(run_ranks(two_runs_at_once, 2, tmp_path)) > 0
    assert list(tmp_path.iterdir()) == []


def in_a_held_folder(folder) -> str:
    parallel = ParallelContext.start()
    try:
        with mock.patch.object(lock, "_GRACE_S", 0.2), lock.held(folder, parallel):
            return "held"
    except ConfigError as error:
        return str(error)


def test_all_ranks_hear_of_it(tmp_path):
    assert run_ranks(in_a_held_folder, 2, tmp_path) == ["held", "held"]
    left_by(tmp_path, pid=os.getpid())
    first, second = run_ranks(in_a_held_folder, 2, tmp_path)
    assert first == second and "in use by another run" in first


def test_a_place_that_takes_nothing_is_named_with_its_flag(tmp_path):
    (tmp_path / "file").write_text("")
    places.check({"--save": tmp_path / "new" / "run", "--tensorboard-dir": None}, rank=0)
    assert list((tmp_path / "new" / "run").iterdir()) == []
    with pytest.raises(ConfigError, match=r"--save .*/file: cannot be written \(File exists\); name a folder"):
        places.check({"--save": tmp_path / "file"}, rank=0)
    with pytest.raises(ConfigError, match=r"--save .*/file/run: cannot be written \(Not a directory\)"):
        places.check({"--save": tmp_path / "file" / "run"}, rank=0)
    with pytest.raises(ConfigError, match=r"--data-ledger /proc/x: cannot be written \(No such file"):
        places.check({"--data-ledger": "/proc/x"}, rank=0)
