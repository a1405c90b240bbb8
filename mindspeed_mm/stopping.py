"""How a run is asked to end, and how its processes end together. Free of torch, so that it can be set up first.

Signals ask for a checkpoint and an orderly end: SIGTERM and SIGUSR1 (schedulers), SIGHUP (a terminal that closes), SIGINT
(Ctrl-C). `--exit-interval` and `--exit-duration-in-mins` ask for the same without a signal.
"""

import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
import time
import types

SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STOP_SIGNALS = (*SCHEDULERS, signal.SIGINT)
INTERRUPTED = 128 + signal.SIGINT  # exit code, as of a shell
_SAME_PRESS_S = 0.25  # a program and its launcher may both be sent one Ctrl-C
_PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """Why a run ends before its last step."""

    name: str  # as in the log
    exit_code: int = 0


REASONS = (  # the first counts where there are several
    Reason("Ctrl-C", INTERRUPTED),
    Reason("SIGTERM"),
    Reason("SIGHUP"),
    Reason("SIGUSR1"),
    Reason("--exit-duration-in-mins"),
    Reason("--exit-interval"),
)
_BY_SIGNAL = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signal.SIGUSR1: "SIGUSR1"}


class StopRequest:
    """Remembers that this process was asked to end, so that a step in progress can be finished first.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self, says: bool = True):
        """says: whether this process prints a line for the first Ctrl-C, as one of the run's should."""
        self.says = says
        self.said = False  # whether it has
        self.ahead_s = 0.0  # SIGUSR1 comes so long before the end; it is due after half of it
        self._begun = time.monotonic()
        self._received: dict[str, float] = {}
        self._previous: dict[int, object] = {}

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
        name, now = _BY_SIGNAL[number], time.monotonic()
        first = self._received.setdefault(name, now)
        if number == signal.SIGINT and now - first > _SAME_PRESS_S:
            os._exit(INTERRUPTED)
        if first == now and number == signal.SIGINT:
            self.said = self.says
            self._say("Ctrl-C: ending after this step; once more ends at once")
        elif first == now and number == signal.SIGUSR1 and self.ahead_s:
            self._say(f"SIGUSR1: training on for {self.ahead_s / 2:g} s, then ending")

    def _say(self, line: str) -> None:
        """To stderr, not to the log: this may run in the middle of a line of it."""
        if self.says:
            with contextlib.suppress(OSError):  # nobody reads it any more
                os.write(2, f"{line}\n".encode())

    def signal(self) -> str | None:
        """The signal that was received and is due, if any."""
        now = time.monotonic()
        wait_s = {"SIGUSR1": self.ahead_s / 2}
        due = [name for name, since in self._received.items() if now - since >= wait_s.get(name, 0.0)]
        return min(due, key=place_of, default=None)

    def minutes(self) -> float:
        """Since this was made."""
        return (time.monotonic() - self._begun) / 60


def place_of(name: str | None) -> int:
    """Place of a reason in REASONS; the number of reasons for None."""
    return next((place for place, reason in enumerate(REASONS) if reason.name == name), len(REASONS))


def die_with_parent() -> None:
    """Linux: kill this process when its parent ends, or the parent's thread that started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Unwound(BaseException):
    """Not an error: `except Exception` lets it pass."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code


def ignore(numbers: tuple[int, ...] = STOP_SIGNALS) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def unwind(number: int, frame: types.FrameType | None) -> None:
    """A handler: run the `finally` blocks, then end with the exit code that the signal alone would give."""
    raise Unwound(128 + number)


def hold_signals() -> None:
    """Keep what comes for processes that are started from now on until they call `let_signals_in`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def let_signals_in() -> None:
    """The handlers are there: what a launcher has held back since this process started comes now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
