"""torchrun for the programs of this package: signals reach the ranks, and the ranks' exit code comes back.

    python -m mindspeed_mm.torchrun [--log-file FILE] TORCHRUN_FLAGS PROGRAM FLAGS

torchrun itself dies of SIGUSR1; after SIGTERM it kills ranks that take longer than 30 s, and then ends with exit code 1 and
a traceback whatever the ranks did. Here SIGTERM, SIGUSR1, SIGHUP and Ctrl-C are handed on, and the ranks may take as long as
they need; a second Ctrl-C kills them. The exit code is 0, or that of the first rank that failed, whose error is the last line
(`leave_word`). Everything else is torchrun's, its flags and its restarts included; after a signal nothing is restarted.
"""

import collections
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspeed_mm import stopping

_SAME_PRESS_S = 0.25
_OURS = "MINDSPEED_MM_TORCHRUN"  # set for the ranks of this launcher
_LAST_LINES_S = 5.0  # time for pending output; a process that outlives its rank may hold the pipe open


class Orders:
    """Signals that this launcher received and passed on."""

    def __init__(self):
        self.given: list[int] = []
        self.ranks: list[int] = []  # process ids; each is the leader of its process group
        self.has_started = False
        self._waiting: collections.deque[int] = collections.deque()
        self._interrupted: float | None = None
        self._handled = [
            number
            for number in stopping.STOP_SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN  # nohup
        ]

    def take(self) -> None:
        """Installs the signal handlers; call it again after torch has set its own."""
        for number in stopping.STOP_SIGNALS:
            signal.signal(number, self._receive if number in self._handled else signal.SIG_IGN)

    def hand_on(self) -> None:
        """Sends new signals to the ranks."""
        while self._waiting:
            number = self._waiting.popleft()
            for rank in self.ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank, number)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._interrupted is not None:
            if now - self._interrupted > _SAME_PRESS_S:
                self._kill()
                raise SystemExit(stopping.INTERRUPTED)
            return
        if number == signal.SIGINT:
            self._interrupted = now
        self.given.append(number)
        if not self.has_started:  # no rank, so nothing to save or to wait for
            raise SystemExit(stopping.INTERRUPTED if number == signal.SIGINT else 0)
        self._waiting.append(number)

    def _kill(self) -> None:
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank, signal.SIGKILL)


class Copy:
    """Copies all output of this process and the ranks to stdout and a file; complete when closed.

    Unlike with `tee`, a signal to the process group does not end it before the last line.
    """

    def __init__(self, path: str):
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
        self._stdout, self._stderr = os.dup(1), os.dup(2)
        self._pipe, theirs = os.pipe()
        for descriptor in (1, 2):
            os.dup2(theirs, descriptor)
        os.close(theirs)
        self._thread = threading.Thread(target=self._copy, name="log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os.dup2(self._stdout, 1)
        os.dup2(self._stderr, 2)
        self._thread.join(_LAST_LINES_S)

    def _copy(self) -> None:
        wanted = [self._stdout, self._file.fileno()]
        while piece := os.read(self._pipe, 65536):
            for descriptor in list(wanted):
                try:
                    _write(descriptor, piece)
                except OSError as error:  # a full disk, or a closed terminal; the run goes on
                    wanted.remove(descriptor)
                    for other in wanted:
                        with contextlib.suppress(OSError):
                            _write(other, f"the log goes on in one place only: {error}\n".encode())


def _write(descriptor: int, piece: bytes) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def leave_word(error: str, environment: Mapping[str, str]) -> bool:
    """Leaves a rank's last line to this launcher, which prints it after all other output. False if the rank has to print
    it itself: under another launcher, or if the ranks are to be started again.
    """
    tries = [int(environment.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS")]
    place = environment.get("TORCHELASTIC_ERROR_FILE")
    if _OURS not in environment or not place or tries[0] < tries[1]:
        return False
    word = {"message": error, "timestamp": int(time.time()), _OURS: True}
    try:
        Path(place).write_text(json.dumps(word), encoding="utf-8")
    except OSError:
        return False
    return True


def launch(argv: list[str], orders: Orders, words: Sequence[str] = ()) -> int:
    """Runs torchrun's flags and program. Returns the exit code. words: more arguments of the program."""
    from torch.distributed import DistNetworkError, run
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import api

    base: Any = LocalElasticAgent  # its methods are decorated, which hides their types

    class Agent(base):
        """torchrun's agent, which also passes signals on."""

        def _start_workers(self, worker_group):
            orders.has_started = True
            stopping.hold_signals()  # so that no signal meets a rank before its handlers are set
            try:
                started = super()._start_workers(worker_group)
                orders.ranks = list(started.values())
            finally:
                orders.take()
                stopping.let_signals_in()
            return started

        def _monitor_workers(self, worker_group):
            orders.hand_on()
            if orders.given:
                self._remaining_restarts = 0
            return super()._monitor_workers(worker_group)

    api.LocalElasticAgent = Agent  # torch has no other way to set an agent
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(
        logging.CRITICAL
    )  # `_exit_code` says it
    os.environ[_OURS] = "1"
    arguments = run.parse_args(argv)
    arguments.training_script_args = [*arguments.training_script_args, *words]
    if hasattr(arguments, "signals_to_handle"):  # newer than torch 2.7
        arguments.signals_to_handle = "SIGQUIT"
    try:
        run.run(arguments)
    except ChildFailedError as error:
        return _exit_code(error, said=bool(orders.given))
    except DistNetworkError as error:
        reason = str(error).splitlines()[0]
        print(
            f"error: the ranks cannot meet: {reason}; without MASTER_PORT, one node takes a free port", file=sys.stderr
        )
        return 1
    return 0


def _exit_code(error, said: bool) -> int:
    """Exit code of the first failed rank, as in a shell; prints its word, or which rank it was. said: True after a signal,
    so the user knows the reason.
    """
    # Without a word torch has a message of its own there.
    data = {rank: failure.error_file_data for rank, failure in error.failures.items()}
    words = {rank: found["message"] if _OURS in found else "" for rank, found in data.items()}
    # A rank that left a word has an error of its own; others of the same second may have failed for want of it.
    rank, failure = min(error.failures.items(), key=lambda item: (not words[item[0]], item[1].timestamp))
    code = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    if words[rank]:
        print(words[rank].rstrip("\n"), file=sys.stderr)
    elif not said:
        print(f"error: rank {rank} ended with exit code {code}; its own output says why", file=sys.stderr)
    return code


def main(argv: list[str], words: Sequence[str] = ()) -> int:
    """words: arguments of the program that torchrun does not look at; it takes --nproc for a flag of its own."""
    orders = Orders()
    orders.take()
    copy = None
    if argv[:1] == ["--log-file"]:
        copy, argv = Copy(argv[1]), argv[2:]
    try:
        return launch(argv, orders, words)
    except Exception:
        traceback.print_exc()  # while the log still receives it
        return 1
    finally:
        if copy is not None:
            copy.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
