"""Runs a program in this rank, or starts the ranks that its --nproc asks for."""

import functools
import os
import sys
from collections.abc import Callable, Sequence

from mindspeed_mm import launch, launchers, logs
from mindspeed_mm.schema import Program
from mindspeed_mm.stopping import Reason, StopRequest

Main = Callable[[Sequence[str], str | None], None]


def stoppable(program: Callable[[Sequence[str], str | None, StopRequest], Reason | None]) -> Main:
    """A program that finishes its step and saves when it is asked to end."""
    return lambda argv, prog: launch.run_stoppable(functools.partial(program, argv, prog))


def at_once(program: Main) -> Main:
    """A program that a signal ends at once."""
    return lambda argv, prog: launch.run_at_once(functools.partial(program, argv, prog))


def run_here(main: Main, argv: Sequence[str] | None, prog: str | None) -> None:
    """Runs a program in this process. argv: flags; default: those of the command line."""
    words = sys.argv[1:] if argv is None else argv
    launch.run(lambda launcher: main(words, prog))


def run_on_ranks(
    command: str,
    program: Program,
    check: Callable[[Sequence[str], int, str | None], object],
    main: Main,
    argv: Sequence[str] | None,
    prog: str | None,
) -> None:
    """Runs a program in this rank, or starts ranks of `mindspeed-mm COMMAND` and ends with their exit code.

    check: reads flags and JSONs for a number of ranks, so that a mistake is said before any rank is started.
    """
    words = sys.argv[1:] if argv is None else argv

    def run(launcher: str | None) -> None:
        ranks = program.parse(words, prog).values.ranks
        if not launchers.is_to_start(ranks, launcher, os.environ):
            main(words, prog)
            return
        logs.setup(level="WARNING")  # the ranks say the rest
        check(words, launchers.world_size(ranks, os.environ), prog)
        sys.exit(launchers.start_ranks(ranks, [command, *words], os.environ))

    launch.run(run)
