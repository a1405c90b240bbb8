"""Errors that a user can meet; any other exception is a bug in this package.

Entry points print an `MMError` as one line and exit with code 1; a traceback means a bug.
"""

import contextlib
import sys
from collections.abc import Iterator


class MMError(Exception):
    """Base of the errors that name a value, the rule it breaks and the fix."""

    exit_code = 1


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
