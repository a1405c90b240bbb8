"""A run's directory of checkpoints: written so that none can be lost, read so that a damaged one is passed over.

A checkpoint is built under a temporary name. When every rank has reported that its files are on the disk, with
checksums beside them, the first rank renames the directory and moves the tracker file. A crash, a full disk or a killed
writer at any moment leaves the previous checkpoint the latest. The reports go through the process group's key-value
store and not through collectives, so that all of it can happen in the background.
"""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import files, integrity, layout
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.parallel.context import ParallelContext

_log = logs.get(__name__)
_COMMIT_TIMEOUT_S = 3600.0


class CheckpointStore:
    """Saves and finds the checkpoints of one run."""

    def __init__(
        self,
        root: Path,
        parallel: ParallelContext,
        *,
        in_background: bool = False,
        keep_last: int | None = None,
        keep_every: int | None = None,
    ):
        """keep_last: how many of the latest to keep, None for all; iterations that keep_every divides are kept too."""
        self.root = root
        self.parallel = parallel
        self.in_background = in_background
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._saves = 0  # counts alike on every rank, for keys of the store

    # ------------------------------------------------------------------------------------------------------------ save

    def save(self, iteration: int, write: Callable[[Path], None] | None) -> None:
        """Write a checkpoint; collective. write(directory) writes this rank's files below it, None: it has none.

        In the foreground a failure is raised on every rank; in the background it is raised by the next call.
        """
        self.wait()
        self._saves += 1
        building = self._building(iteration)
        if self.parallel.is_first:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
        dist.barrier()
        if not self.in_background:
            self._write_and_commit(iteration, write)
            self._raise_failure()
            return
        self._thread = threading.Thread(
            target=self._write_and_commit, args=(iteration, write), name="checkpoint writer", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until a checkpoint in the background is complete; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_failure()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise CheckpointError(failure)

    def _write_and_commit(self, iteration: int, write: Callable[[Path], None] | None) -> None:
        """Write, report to the first rank, and learn from it how it went everywhere. Never raises."""
        building = self._building(iteration)
        report = "ok"
        try:
            if write is not None:
                write(building)
        except Exception as error:  # any failure of a disk or a library must reach the other ranks as a report
            report = f"rank {self.parallel.rank}: {type(error).__name__}: {error}"
        store, key = self.parallel.store, f"checkpoint/{self._saves}"
        store.set(f"{key}/{self.parallel.rank}", report)
        if self.parallel.is_first:
            store.set(f"{key}/result", self._commit(iteration, self._reports(key)))
        result = _read(store, f"{key}/result")
        if result != "ok":
            self._failure = f"checkpoint of iteration {iteration} not saved: {result}; the previous one is the latest"

    def _reports(self, key: str) -> str:
        """ "ok" when every rank has written its files, or the first failure."""
        for rank in range(self.parallel.world_size):
            report = _read(self.parallel.store, f"{key}/{rank}")
            if report != "ok":
                return report
        return "ok"

    def _commit(self, iteration: int, report: str) -> str:
        building, final = self._building(iteration), layout.iteration_directory(self.root, iteration)
        if report != "ok":
            shutil.rmtree(building, ignore_errors=True)
            return report
        try:
            if final.exists():  # a run that was resumed from before this iteration writes it again
                shutil.rmtree(final)
            building.rename(final)
            files.flush_directory(self.root)
            files.write_text(str(iteration), self.root / layout.TRACKER)
            self._delete_old(iteration)
        except OSError as error:
            return f"rank {self.parallel.rank}: {error}"
        return "ok"

    def _delete_old(self, latest: int) -> None:
        if self.keep_last is None:
            return
        older = [number for number in layout.iterations(self.root) if number <= latest]
        for iteration in older[self.keep_last :]:
            if self.keep_every is None or iteration % self.keep_every:
                shutil.rmtree(layout.iteration_directory(self.root, iteration), ignore_errors=True)

    def _building(self, iteration: int) -> Path:
        final = layout.iteration_directory(self.root, iteration)
        return final.with_name(final.name + ".tmp")

    # ------------------------------------------------------------------------------------------------------------ load

    def latest_whole(self) -> layout.Location:
        """The latest checkpoint whose files are all as they were written; collective.

        Damaged ones are passed over, each with a line that says why. Raises CheckpointError if none is left.
        """
        reasons = []
        for location in layout.candidates(self.root):
            reason = self._damage(location)
            if reason is None:
                return location
            reasons.append(reason)
            if self.parallel.is_first:
                _log.warning(f"passed over {location.directory.name}: {reason}")
        raise CheckpointError(f"{self.root}: holds no checkpoint that can be loaded; the latest: {reasons[0]}")

    def _damage(self, location: layout.Location) -> str | None:
        """Why a checkpoint cannot be used, the same answer on every rank; each rank looks at its share of the files."""
        mine = None
        try:
            for directory in layout.parts(location.directory)[self.parallel.rank :: self.parallel.world_size]:
                integrity.verify(directory)
        except CheckpointError as error:
            mine = str(error)
        everyone: list = [None] * self.parallel.world_size
        dist.all_gather_object(everyone, mine)
        return next((reason for reason in everyone if reason is not None), None)


def _read(store: dist.Store, key: str) -> str:
    """Wait for a key without holding the store, which the main thread uses too."""
    end = time.monotonic() + _COMMIT_TIMEOUT_S
    while not store.check([key]):
        if time.monotonic() > end:
            return f"no report {key} after {_COMMIT_TIMEOUT_S:.0f} s; a rank is gone"
        time.sleep(0.02)
    return store.get(key).decode()
