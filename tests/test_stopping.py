"""What a process does when it is asked to end, with nothing of a run around it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mindspeed_mm import stopping
from mindspeed_mm.stopping import StopRequest

BUSY = """
import sys, time
from mindspeed_mm.stopping import StopRequest
with StopRequest() as request:
    print("busy", flush=True)
    time.sleep(60)
"""


def test_a_second_ctrl_c_ends_at_once_and_the_first_is_said_in_one_line():
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # the same press, by way of a launcher
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == "Ctrl-C: ending after this step; once more ends at once\n"


def test_ctrl_c_counts_before_the_signals_of_schedulers():
    with StopRequest(says=False) as request:
        assert request.signal() is None
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert request.signal() == "SIGTERM"
        signal.raise_signal(signal.SIGINT)
        assert request.signal() == "Ctrl-C"


def test_sigusr1_is_due_after_half_of_the_time_and_sigterm_at_once():
    with StopRequest(says=False) as request:
        request.ahead_s = 0.4
        signal.raise_signal(signal.SIGUSR1)
        assert request.signal() is None
        time.sleep(0.25)
        assert request.signal() == "SIGUSR1"
    with StopRequest(says=False) as request:
        request.ahead_s = 100.0
        signal.raise_signal(signal.SIGTERM)
        assert request.signal() == "SIGTERM"


def test_nohup_is_kept(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(says=False):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_came_before_there_was_a_handler_is_not_lost():
    try:
        stopping.hold_signals()
        signal.raise_signal(signal.SIGTERM)
        with StopRequest(says=False) as request:
            assert request.signal() == "SIGTERM"
    finally:
        stopping.let_signals_in()


def test_a_loop_ends_between_two_items_and_what_it_has_is_written():
    done = []
    with pytest.raises(stopping.Unwound) as found, stopping.item_by_item(says=False) as request:
        try:
            for item in range(3):
                signal.raise_signal(signal.SIGTERM)
                done.append(item)
                if request.signal() is not None:
                    break
        finally:
            done.append("written")
    assert (done, found.value.exit_code) == ([0, "written"], 143)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_fork_counts_after_it_in_the_parent_only(number):
    seen = []
    before = signal.signal(number, lambda number, frame: seen.append((os.getpid(), number)))
    try:
        with stopping.not_now():
            child = os.fork()
            if child == 0:
                signal.raise_signal(number)
                os._exit(len(seen))
            signal.raise_signal(number)
            assert seen == []
        assert seen == [(os.getpid(), number)]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        signal.signal(number, before)


LAST_INSTANT = """
import atexit, os, signal
def late():
    os.kill(os.getpid(), signal.SIGINT)
    import time; time.sleep(1)
atexit.register(late)
from mindspeed_mm.errors import said_in_one_line
with said_in_one_line():
    print("done")
"""


def test_ctrl_c_while_a_tool_exits_keeps_its_output_and_prints_no_traceback():
    found = subprocess.run([sys.executable, "-c", LAST_INSTANT], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (130, "done\n", "")
