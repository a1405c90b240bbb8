"""Takes jobs from the queue, one at a time, and has their samples made. This file knows no web."""

import errno
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from mindspeed_mm import logs
from mindspeed_mm.errors import MMError
from mindspeed_mm.serving.maker import Maker, Preview, no_preview
from mindspeed_mm.serving.previews import Previews
from mindspeed_mm.serving.queue import RUNNING, Job, Queue

_log = logs.get(__name__)
# The disk has no room or does not answer: the job is not at fault, and waiting may help.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_Result = TypeVar("_Result")


class Stopped(Exception):
    """The job was cancelled, or the server ends."""


class Worker:
    """A thread that makes the samples of a queue's jobs."""

    def __init__(
        self,
        queue: Queue,
        maker: Maker,
        ended: Callable[[str, float], None] = lambda outcome, s: None,
        pause_s: float = 1.0,
        longest_pause_s: float = 30.0,
        keep_s: float | None = None,
    ):
        """ended: told how each job ended and its seconds. pause_s: before a write to a full disk is tried again; then
        twice as long, and so on up to longest_pause_s. keep_s: time after which an ended job is removed; None: never.
        """
        self.queue = queue
        self.maker = maker
        self.previews = Previews()
        self.disk_fault: str | None = None  # why the disk cannot be written now
        self._ended = ended
        self._pause_s, self._longest_pause_s = pause_s, longest_pause_s
        self.keep_s = keep_s
        self._lock = threading.Lock()  # for the fields below
        self._current: str | None = None
        self._progress = (0, 1)
        self._cancelled = threading.Event()
        self._ending = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Puts the jobs of a killed server back into the queue, and begins."""
        for job in self.queue.resume():
            _log.warning(f"{job.id}: the server ended while it was made; it is {job.status} now")
        self._thread.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """Ends within a block of the denoiser; the current job goes back into the queue."""
        self._ending.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def wake(self) -> None:
        """There is a new job."""
        self._news.set()

    def cancel(self, id: str) -> bool:
        """Ends the work at a job, if it is the current one; what becomes of the job stands in the queue already."""
        with self._lock:
            if self._current != id:
                return False
            self._cancelled.set()
            return True

    def progress(self, id: str) -> float:
        """Share of a job's steps that are done, from 0 to 1."""
        with self._lock:
            return self._progress[0] / self._progress[1] if self._current == id else 0.0

    def remove(self, id: str, owner: str) -> bool:
        """Deletes a job with its files, ending the work at it. False if `owner` has no such job."""
        if self.queue.remove(id, owner) is None:
            return False
        if not self.cancel(id):  # else this thread's end of the job does it
            self._clean(id)
        return True

    def _tidy(self) -> None:
        """Removes the files of jobs that were deleted, or are too old."""
        if self.keep_s is not None:
            self.queue.expire(time.time() - self.keep_s)
        for id in self.queue.removed():
            self._clean(id)

    def _clean(self, id: str) -> None:
        self.maker.remove(id)
        self.queue.forget(id)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._insist(self._tidy)
            self._news.clear()
            job = self._insist(self.queue.take)
            if job is None:
                self._news.wait(60)
                continue
            with self._lock:
                self._cancelled.clear()
                self._progress, self._current = (0, 1), job.id
            self.previews.begin(job.id)
            if not self._is_wanted(job):  # ended by its owner just before it was current
                self._cancelled.set()
            self._do(job)
            with self._lock:
                self._current = None
            self.previews.begin(None)

    def _do(self, job: Job) -> None:
        started, outcome = time.monotonic(), "completed"
        try:
            file = self.maker.made(job.id, job.request["line"]) if job.starts > 1 else None
            if file is None:
                write = self.maker.make(job.id, job.request["line"], self._tell, self._check)
                file = self._insist(write, self._check)
            if not self._insist(lambda: self.queue.finish(job.id, file)):
                raise Stopped
        except Stopped:
            outcome = self._stopped(job)
        except MMError as error:
            outcome = self._failed(job, "generation_failed", str(error))
        except OSError as error:
            if error.errno in _OF_THE_DISK:  # while the sample was made, before anything was written
                _log.warning(f"{job.id}: {error}; it is tried again")
                self._insist(lambda: self.queue.give_back(job.id))
                self._ending.wait(self._pause_s)
                outcome = "given back"
            else:
                outcome = self._failed(job, "server_error", str(error))
        except Exception as error:
            _log.exception(f"{job.id}: failed")
            outcome = self._failed(job, "server_error", f"{type(error).__name__}: {error}")
        self._ended(outcome, time.monotonic() - started)

    def _is_wanted(self, job: Job) -> bool:
        found = self._insist(lambda: self.queue.get(job.id))
        return found is not None and found.status == RUNNING

    def _stopped(self, job: Job) -> str:
        if self._is_wanted(job):  # so the server ends
            self._insist(lambda: self.queue.give_back(job.id))
            return "given back"
        self.maker.remove(job.id)
        return "cancelled"

    def _failed(self, job: Job, code: str, reason: str) -> str:
        _log.error(f"{job.id}: {reason}")
        self._insist(lambda: self.queue.fail(job.id, code, reason))
        return "failed"

    def _tell(self, number: int, total: int, preview: Preview = no_preview) -> None:
        with self._lock:
            self._progress = (number, total)
        if number < total:  # else the video itself is next
            self.previews.offer(preview)

    def _check(self) -> None:
        if self._cancelled.is_set() or self._ending.is_set():
            raise Stopped

    def _insist(self, write: Callable[[], _Result], check: Callable[[], None] = lambda: None) -> _Result:
        """Does what needs the disk. While the disk is full or broken, waits and tries again, unless `check` raises.

        At the end of the server it is tried once.
        """
        pause_s = self._pause_s
        while True:
            try:
                result = write()
                self.disk_fault = None
                return result
            except OSError as error:
                if error.errno not in _OF_THE_DISK or self._ending.is_set():
                    raise
                if self.disk_fault is None:
                    _log.error(f"the disk: {error}; trying again until it can be written")
                self.disk_fault = str(error)
            check()
            self._ending.wait(pause_s)
            pause_s = min(2 * pause_s, self._longest_pause_s)
            check()
