"""Processes of `faults.py` that start at once: forked from one that has imported torch already, instead of a new Python.

A start of Python with torch and megatron-core costs some 10 s of a core for each rank, and a fault a tenth of that. Here
a Python command is run in a fork: the parent, session, signals, open files, environment and output are those of a
started one; only the modules are there already. torch's launcher starts its ranks in the same way.
"""

import atexit
import contextlib
import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

MARK_FD = 250  # open in every process of a run; the environment that /proc shows of a fork is that of its parent


class Forked:
    """As much of `subprocess.Popen` as is needed here. A process in a session of its own."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path, redirect: Callable[[], None]):
        """command: Python and its arguments, `-m MODULE ...` or `PROGRAM ...`; redirect: called in the new process."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                redirect()
                _forget(environment, folder)
                code = _run(command)
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("a fork", timeout)
            time.sleep(0.01)
        return code


def load() -> None:
    """Imports what trainings and samplings import. Starts no thread."""
    import transformers  # noqa: F401
    from torch.distributed import run  # noqa: F401
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel  # noqa: F401

    import mindspeed_mm.parallel.engine
    import mindspeed_mm.sampling.run
    import mindspeed_mm.training.build
    import mindspeed_mm.training.extraction  # noqa: F401

    def start_rank(self, args: tuple, env: dict[str, str]) -> Forked:
        return Forked(list(args), env, Path.cwd(), lambda: None)

    subprocess_handler.SubprocessHandler._popen = start_rank


def _forget(environment: dict[str, str], folder: Path) -> None:
    """What a start of Python has not: the parent's files, handlers, environment and work for its exit."""
    os.closerange(3, MARK_FD)
    os.closerange(MARK_FD + 1, 4096)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            if signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    atexit._clear()
    multiprocessing.util._finalizer_registry.clear()
    atexit.register(multiprocessing.util._exit_function)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def _run(command: list[str]) -> int:
    """Runs a program as Python does, up to the end of its threads and what is registered for its exit."""
    words = [word for word in command[1:] if word != "-u"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # as on a terminal
    code = 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path[0] = os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path[0] = str(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code
