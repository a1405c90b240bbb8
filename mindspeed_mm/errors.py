"""Errors that a user can meet; any other exception is a bug in this package.

Entry points print an `MMError` as one line and exit with code 1; a traceback means a bug.
"""

import atexit
import contextlib
import gc
import os
import signal
import sys
import unicodedata
from collections.abc import Iterator

_INVISIBLE = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, separators of lines and paragraphs


def _visible(letter: str) -> str:
    """The letter, or its escape if it would break or rewrite the line of a terminal, or cannot be encoded."""
    return letter if unicodedata.category(letter) not in _INVISIBLE else letter.encode("unicode_escape").decode()


class MMError(Exception):
    """Base of the errors that name a value, the rule it breaks and the fix. The first argument is the message."""

    exit_code = 1

    def __str__(self) -> str:
        """The message in one line: names from files may hold line breaks and escape sequences of terminals."""
        return "".join(_visible(letter) for letter in str(self.args[0])) if self.args else ""


class ConfigError(MMError):
    """A flag or a JSON key: unknown, of the wrong type, or in conflict with another one."""


class DataError(MMError):
    """A data list, video, image or caption is unusable."""


class CheckpointError(MMError):
    """A weight file or checkpoint directory is missing, incomplete or for another model."""


class TrainingDiverged(MMError):
    """Too many steps in a row had a non-finite or extreme gradient norm."""


class RankLost(MMError):
    """Another process of the run has died or hangs."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: trying again may help


class ServerFull(MMError):
    """A server takes no further request now."""


class SamplingError(MMError):
    """A sample cannot be finished, for example because a velocity is NaN."""


@contextlib.contextmanager
def said_in_one_line() -> Iterator[None]:
    """For the main function of a tool: one of our errors ends the program with one line on stderr and exit code 1,
    Ctrl-C with 130.
    """
    try:
        yield
    except MMError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Ctrl-C: ended", file=sys.stderr)
        sys.exit(130)
    end_quietly()


def end_quietly() -> None:
    """The work is done: Python exits without a search for garbage, which takes seconds after an import of torch. A
    Ctrl-C that arrives meanwhile ends the process with 130 and no traceback.
    """

    def at_exit() -> None:
        gc.freeze()
        with contextlib.suppress(OSError, ValueError):  # a pipe without a reader, a closed file
            sys.stdout.flush()
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

    atexit.register(at_exit)  # the last one that is registered runs first
