"""What a process does when it is asked to end, with nothing of a run around it."""

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


def test_what_is_under_way_is_written_before_a_program_unwinds():
    before = signal.signal(signal.SIGTERM, stopping.unwind)
    done = []
    try:
        with pytest.raises(stopping.Unwound) as found:
            try:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(1)
            except Exception:
                done.append("swallowed")
            finally:
                done.append("written")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (done, found.value.exit_code) == (["written"], 143)
