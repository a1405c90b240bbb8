"""Processes that run tasks in order; one that hangs or dies is replaced, and its current item is skipped.

torch's DataLoader cannot do that: a decoder that never returns, or that kills its process, ends the run. Here every
worker writes its current item and the start time into memory that the main process reads.
"""

import collections
import dataclasses
import multiprocessing
import multiprocessing.util
import os
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Any, Generic, TypeVar

import torch
import torch.multiprocessing  # teaches pipes to send tensors as shared memory
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mindspeed_mm import stopping
from mindspeed_mm.data.workers.buffers import no_room
from mindspeed_mm.errors import MMError

Announce = Callable[[int], None]
Task = TypeVar("Task")
Result = TypeVar("Result")

_IDLE = -1.0
_PREFETCH = 2  # tasks per worker at a time
_GIVE_UP = 3  # deaths of a worker without a current item, which the data cannot have caused


@dataclasses.dataclass(frozen=True, slots=True)
class Lent(Generic[Result]):
    """A result whose `tensor` lies in the worker's buffer `number`.

    The pool yields `result`, and calls `work.take_back([number])` in the worker once the main process no longer uses
    the tensor's memory.
    """

    result: Result
    tensor: Tensor
    number: int


class WorkerPool(Generic[Task, Result]):
    """Runs `work(task, announce)` on tasks. Workers start with the first task and end with `close`."""

    def __init__(
        self,
        work: Callable[[Task, Announce], Lent[Result] | Result],
        count: int,
        *,
        lost: Callable[[Task, int, str], Task],
        timeout_s: float | None = None,
        start_method: str | None = None,
    ):
        """work: runs in a worker; announces each item (a number from 0) before it starts it. lost: (task, item,
        reason) -> the task to run instead, after a process was killed or died at an item. timeout_s: seconds that an
        item may take. count: with 0, one worker gets a task only when its result is requested.

        All that a worker needs can be pickled, so that every start method of multiprocessing works.
        """
        self._ahead = _PREFETCH * count
        make = (multiprocessing.get_context(start_method), work, lost, timeout_s)
        self._workers: list[_Worker[Task, Result]] = [_Worker(*make) for _ in range(max(1, count))]
        # Before multiprocessing's own handler, which would send workers a SIGTERM and wait for them.
        multiprocessing.util.Finalize(self, _stop, args=(self._workers,), exitpriority=1)

    def run(self, tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """Results in the order of the tasks; an exception of `work` is raised here as a RuntimeError with its text."""
        numbered = enumerate(tasks)
        waiting: collections.deque[_Worker[Task, Result]] = collections.deque()

        def hand_out(limit: int) -> None:
            while len(waiting) < limit:
                for number, task in numbered:
                    worker = self._workers[number % len(self._workers)]
                    worker.give(task)
                    waiting.append(worker)
                    break
                else:
                    return

        while True:
            hand_out(max(1, self._ahead))
            if not waiting:
                return
            result = waiting.popleft().take()
            hand_out(self._ahead)
            yield result

    def close(self) -> None:
        _stop(self._workers)


class _Worker(Generic[Task, Result]):
    """One process and its unanswered tasks."""

    _pipe: Connection  # these two once it has started
    _at: "Sequence[float]"

    def __init__(
        self,
        context: Any,  # of multiprocessing; its base class declares no Process
        work: Callable[[Task, Announce], Lent[Result] | Result],
        lost: Callable[[Task, int, str], Task],
        timeout_s: float | None,
    ):
        self._context, self._work, self._lost, self._timeout_s = context, work, lost, timeout_s
        self._tasks: collections.deque[tuple[int, Task]] = collections.deque()
        self._number = 0
        self._lent: list[tuple[int, StorageWeakRef]] = []
        self._idle_deaths = 0
        self._process: BaseProcess | None = None

    def give(self, task: Task) -> None:
        self._tasks.append((self._number, task))
        self._number += 1
        if self._process is None:
            self._start()
        else:
            self._send(self._tasks[-1])

    def take(self) -> Result:
        """The result of the oldest task."""
        while True:
            if self._pipe.poll(min(1.0, max(0.0, self._patience()))):
                try:
                    done, value = self._pipe.recv()
                except (EOFError, OSError):  # it died while it answered
                    self._replace(f"its process {self._ending()}")
                    continue
                self._tasks.popleft()
                if not done:
                    raise value if isinstance(value, MMError) else RuntimeError(f"a data worker failed:\n{value}")
                if not isinstance(value, Lent):
                    return value
                self._lent.append((value.number, StorageWeakRef(value.tensor.untyped_storage())))
                return value.result
            if self._process is not None and not self._process.is_alive():
                self._replace(f"its process {self._ending()}")
            elif self._patience() <= 0:
                self._replace(f"gave nothing in {self._timeout_s:g} s")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(timeout=5)  # a process that waits for a dead disk cannot even be killed
            self._pipe.close()
            self._process = None

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._at = RawArray("d", [_IDLE, _IDLE, 0.0])  # number of the task, item, start time
        arguments = (self._work, theirs, self._at)
        process = self._process = self._context.Process(target=_serve, args=arguments, daemon=True)
        with stopping.not_now():
            process.start()
        self._lent.clear()  # the old process's buffers are gone
        theirs.close()
        for task in self._tasks:
            self._send(task)

    def _send(self, task: tuple[int, Task]) -> None:
        try:
            self._pipe.send((*task, self._unused()))
        except OSError:  # it is dead; `take` detects that
            return

    def _unused(self) -> tuple[int, ...]:
        """Buffers that are no longer in use; each is reported once."""
        unused = tuple(number for number, memory in self._lent if memory.expired())
        self._lent = [(number, memory) for number, memory in self._lent if number not in unused]
        return unused

    def _patience(self) -> float:
        """Seconds until the current item has taken too long."""
        _, item, since = self._at
        return 1.0 if self._timeout_s is None or item == _IDLE else since + self._timeout_s - time.monotonic()

    def _ending(self) -> str:
        assert self._process is not None, "a task was taken before one was given"
        self._process.join(timeout=5)
        code = self._process.exitcode
        return f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"

    def _replace(self, reason: str) -> None:
        number, item, _ = self._at
        self.stop()
        if item == _IDLE:
            self._idle_deaths += 1
            if self._idle_deaths == _GIVE_UP:
                raise RuntimeError(
                    f"a data worker without a current file {reason}; is there memory for num_workers processes?"
                )
        for place, (given, task) in enumerate(self._tasks):
            if given == number and item != _IDLE:
                self._tasks[place] = given, self._lost(task, int(item), reason)
        self._start()


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


def _serve(work, pipe, at) -> None:
    # A signal that ends the main process must not end its workers first, as if their clips were bad.
    stopping.ignore()
    stopping.die_with_parent()
    torch.set_num_threads(1)  # the number of workers provides the parallelism
    parent = os.getppid()
    while True:
        if not pipe.poll(2):
            if os.getppid() != parent:  # the main process is gone
                os._exit(0)
            continue
        try:
            number, task, unused = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # not an orderly exit, which sometimes aborts with torch 2.13

        def announce(item: int, number=number) -> None:
            at[1] = _IDLE
            at[0], at[2] = number, time.monotonic()
            at[1] = item

        try:
            if unused:
                work.take_back(unused)
            answer = True, work(task, announce)
        except Exception:
            answer = False, traceback.format_exc()
        at[1] = _IDLE
        try:
            pipe.send(answer)
        except RuntimeError as error:  # torch found no shared memory for a tensor
            pipe.send((False, no_room(error, None, 1)))
        except OSError:
            os._exit(0)
