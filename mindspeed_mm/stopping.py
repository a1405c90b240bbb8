"""Requests to end a run, and the common end of its processes. Imports no torch, so that it can be set up first.

These signals request a checkpoint and an orderly end: SIGTERM and SIGUSR1 (schedulers), SIGHUP (a closed terminal),
SIGINT (Ctrl-C). `--exit-interval`, `--exit-duration-in-mins` and `--patience` request the same without a signal.
"""

import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STOP_SIGNALS = (*SCHEDULERS, signal.SIGINT)
INTERRUPTED = 128 + signal.SIGINT  # exit code, as in a shell
_SAME_PRESS_S = 0.25  # a program and its launcher may both receive one Ctrl-C
_PR_SET_PDEATHSIG = 1  # constant of prctl(2)


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """Reason of an end before the last step."""

    name: str  # as in the log
    exit_code: int = 0


REASONS = (  # if several apply, the first one counts
    Reason("Ctrl-C", INTERRUPTED),
    Reason("SIGTERM"),
    Reason("SIGHUP"),
    Reason("SIGUSR1"),
    Reason("--exit-duration-in-mins"),
    Reason("--exit-interval"),
    Reason("--patience"),
)
_BY_SIGNAL = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signal.SIGUSR1: "SIGUSR1"}


class StopRequest:
    """Records that this process was asked to end, so that the current step can be finished first.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self, says: bool = True):
        """says: True if this process prints a line for the first Ctrl-C; one process of a run should."""
        self.says = says
        self.said = False  # whether it has
        self.ahead_s = 0.0  # seconds from SIGUSR1 to the job's end; the request is due after half of them
        self._begun = time.monotonic()
        self._received: dict[str, float] = {}
        self._previous: dict[signal.Signals, Any] = {}  # handlers, as `signal.signal` returns and takes them

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._previous[number] = signal.signal(number, self._remember)
        let_signals_in()
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        name, now = _BY_SIGNAL[signal.Signals(number)], time.monotonic()
        first = self._received.setdefault(name, now)
        if number == signal.SIGINT and now - first > _SAME_PRESS_S:
            os._exit(INTERRUPTED)
        if first == now and number == signal.SIGINT:
            self.said = self.says
            self._say("Ctrl-C: ending after this step; once more ends at once")
        elif first == now and number == signal.SIGUSR1 and self.ahead_s:
            self._say(f"SIGUSR1: training on for {self.ahead_s / 2:g} s, then ending")

    def _say(self, line: str) -> None:
        """Prints to stderr, not to the log: this may run in the middle of a log line."""
        if self.says:
            with contextlib.suppress(OSError):  # the pipe has no reader
                os.write(2, f"{line}\n".encode())

    def signal(self) -> str | None:
        """The received signal that is due, or None."""
        now = time.monotonic()
        wait_s = {"SIGUSR1": self.ahead_s / 2}
        due = [name for name, since in self._received.items() if now - since >= wait_s.get(name, 0.0)]
        return min(due, key=place_of, default=None)

    def minutes(self) -> float:
        """Minutes since this object was created."""
        return (time.monotonic() - self._begun) / 60


def place_of(name: str | None) -> int:
    """Place of a reason in REASONS; the number of reasons for None."""
    return next((place for place, reason in enumerate(REASONS) if reason.name == name), len(REASONS))


def die_with_parent() -> None:
    """Linux: kills this process when its parent ends, or the thread of the parent that started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Unwound(BaseException):
    """Not an error, so that `except Exception` does not catch it."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code


def ignore(numbers: tuple[int, ...] = STOP_SIGNALS) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def item_by_item(says: bool) -> Iterator[StopRequest]:
    """For a loop that keeps its results in a `finally` block: it ends when the request has a signal.

    Raises Unwound with the signal's exit code after the block. No handler raises: Python would print and drop the
    exception if it met a finalizer or a fork.
    """
    with StopRequest(says) as request:
        yield request
    name = request.signal()
    if name is not None:
        raise Unwound(128 + next(number for number, known in _BY_SIGNAL.items() if known == name))


@contextlib.contextmanager
def not_now() -> Iterator[None]:
    """For a fork: signals that arrive in the block count after it, for this process only."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signal handlers run in the main thread
        return
    process, received = os.getpid(), []
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in tuple(previous.items()):
        if handler is None or handler == signal.SIG_IGN:  # None: set by C code, which we could not restore
            del previous[number]
        else:
            signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        if os.getpid() == process:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for number in received:
                signal.raise_signal(number)


def hold_signals() -> None:
    """Holds signals back for processes started from now on, until they call `let_signals_in`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def let_signals_in() -> None:
    """Delivers signals that a launcher has held back since this process started; call it when the handlers are set."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
