"""The pool of worker processes: order, errors, and what happens to a process that hangs or dies."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import forked_from_server

from mindspeed_mm.data.workers.pool import WorkerPool
from mindspeed_mm.stopping import StopRequest


def square(task, announce):
    """(number, what to do): the square, after the announced thing has been done."""
    number, action = task
    announce(number)
    if action == "hang":
        time.sleep(1000)
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "raise":
        raise ValueError(f"no {number}")
    return number**2


def lost(task, item, reason):
    return item, f"lost: {reason}"


def remember(task, announce):
    """As `square`; a lost task says so."""
    return task[1] if str(task[1]).startswith("lost") else square(task, announce)


def results(tasks, work=square, count=2, timeout_s=None, **options):
    pool = WorkerPool(work, count, lost=lost, timeout_s=timeout_s, **options)
    try:
        return list(pool.run(tasks))
    finally:
        pool.close()


@pytest.mark.parametrize(("count", "start_method"), [(0, "fork"), (1, "fork"), (3, "fork"), (1, "forkserver")])
def test_results_come_in_the_order_of_the_tasks(count, start_method):
    assert results([(n, "") for n in range(11)], count=count, start_method=start_method) == [n**2 for n in range(11)]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_task_that_hangs_is_given_up_and_the_others_are_done(count):
    tasks = [(n, "hang" if n in (2, 3) else "") for n in range(8)]
    begin = time.monotonic()
    found = results(tasks, remember, count, timeout_s=0.5)
    assert found[:2] == [0, 1] and found[4:] == [16, 25, 36, 49]
    assert found[2] == found[3] == "lost: gave nothing in 0.5 s"
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("count", [0, 2])
def test_a_task_that_kills_its_process_is_given_up(count):
    found = results([(n, "die" if n == 1 else "") for n in range(5)], remember, count)
    assert found == [0, "lost: its process was ended by signal 9", 4, 9, 16]


def test_an_exception_is_raised_with_its_text():
    with pytest.raises(RuntimeError, match="a data worker failed(.|\n)*ValueError: no 1"):
        results([(1, "raise")])


def die_idle(task, announce):
    os._exit(3)


def test_a_worker_that_dies_at_nothing_is_not_replaced_for_ever():
    with pytest.raises(RuntimeError, match="without a current file its process ended with code 3"):
        results([(1, "")], die_idle)


def process_and_tensor(task, announce):
    return os.getpid(), torch.full((1000, 100), float(task))


def test_tensors_come_through_and_processes_end_with_the_pool():
    pool = WorkerPool(process_and_tensor, 2, lost=lost)
    found = list(pool.run(range(4)))
    assert [tensor[0, 0].item() for _, tensor in found] == [0, 1, 2, 3]
    assert len({pid for pid, _ in found}) == 2 and os.getpid() not in {pid for pid, _ in found}
    pool.close()
    for pid, _ in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_without_workers_ahead_nothing_is_started_before_it_is_asked_for():
    asked = []

    def tasks():
        for number in range(3):
            asked.append(number)
            yield number, ""

    pool = WorkerPool(square, 0, lost=lost)
    found = pool.run(tasks())
    assert asked == []
    assert next(found) == 0 and asked == [0]
    assert next(found) == 1 and asked == [0, 1]
    pool.close()


def leave_the_pool_open(ending: str, pipe) -> None:
    """A main process that keeps a run's signal handlers, tells the ids of its busy workers, and ends in some way."""
    with StopRequest(says=False):
        found = WorkerPool(sleepy, 2, lost=lost).run([0, 0, 1000, 1000])
        pipe.send([next(found), next(found)])
        if ending == "exits":
            sys.exit(130)
        if ending == "exits at once":
            os._exit(130)
        os.kill(os.getpid(), signal.SIGKILL)


def sleepy(task, announce):
    """Sleeps for so many seconds, as a decoder that does not come back."""
    announce(0)
    time.sleep(task)
    return os.getpid()


def gone(pid: int, within_s: float = 20.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # dead; in a container nobody may collect it
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("ending", "code"), [("exits", 130), ("exits at once", 130), ("is killed", -signal.SIGKILL)])
def test_workers_that_hang_end_with_the_main_process(ending, code):
    ours, theirs = multiprocessing.Pipe()
    process = forked_from_server(leave_the_pool_open, ending, theirs)
    workers = ours.recv()
    process.join(timeout=120)
    assert process.exitcode == code
    assert len(workers) == 2 and all(gone(pid) for pid in workers)


def killed_at_once(task, announce):
    """Sends itself what a scheduler sends to all processes of a job."""
    announce(0)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        os.kill(os.getpid(), number)
    return task


def test_signals_to_all_processes_of_a_job_end_no_worker_before_its_main_process():
    assert results([1, 2], killed_at_once) == [1, 2]
