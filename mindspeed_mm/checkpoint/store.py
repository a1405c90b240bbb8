"""A run's directory of checkpoints, written so that no checkpoint can be lost.

A checkpoint is built under a temporary name. When every rank's files are on the disk, the first rank records their
checksums, renames the directory and updates the tracker file. After a crash, a full disk or a killed writer at any
moment, the previous checkpoint is still the latest. Files may be written in a thread. Collectives run in the caller's
thread, because training steps have collectives of their own.
"""

import dataclasses
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from mindspeed_mm import atomic, logs
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, layout
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.meeting import meet
from mindspeed_mm.parallel.shards import is_of_memory

_log = logs.get(__name__)
_PROBE_BYTES = 1 << 20
_REPLACED = ".old"  # suffix of a checkpoint while another of the same iteration replaces it


@dataclasses.dataclass(frozen=True, slots=True)
class Writing:
    """A rank's part in writing a checkpoint.

    write(): writes the rank's files, in any thread, and returns their checksums. finish(): an optional collective
    afterwards; returns the checksums of files that this rank added.
    """

    write: Callable[[], integrity.Checksums]
    finish: Callable[[], integrity.Checksums] | None = None


@dataclasses.dataclass(slots=True)
class _InFlight:
    iteration: int
    writing: Writing
    thread: threading.Thread | None = None
    found: integrity.Checksums = dataclasses.field(default_factory=dict)
    failure: str | None = None


class CheckpointStore:
    """Saves the checkpoints of one run (`choice.py` finds them again); every method is collective."""

    def __init__(
        self,
        root: Path,
        parallel: ParallelContext,
        *,
        in_background: bool = False,
        keep_last: int | None = None,
        keep_every: int | None = None,
    ):
        """keep_last: number of latest checkpoints to keep, None for all. Iterations divisible by keep_every are kept
        too.
        """
        self.root = root
        self.parallel = parallel
        self.in_background = in_background
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._in_flight: _InFlight | None = None

    # ------------------------------------------------------------------------------------------------------------ save

    def save(self, iteration: int, prepare: Callable[[Path], Writing]) -> None:
        """Writes a checkpoint, or starts to in the background. prepare(directory), on every rank, returns this rank's
        part.

        Raises CheckpointError on every rank if it cannot be written; earlier checkpoints stay unchanged. A checkpoint
        that is still being written in the background is completed first.
        """
        self.complete()
        building = self._building(iteration)
        self._agree(iteration, self._attempt(lambda: self._begin(building)))
        job = self._in_flight = _InFlight(iteration, prepare(building))
        if self.in_background:
            job.thread = threading.Thread(target=self._write, args=(job,), name="checkpoint writer", daemon=True)
            job.thread.start()
        else:
            self._write(job)
            self.complete()

    def poll(self) -> int | None:
        """Completes the background checkpoint if every rank has written its part. Returns its iteration, else None."""
        if self._in_flight is None:
            return None
        thread = self._in_flight.thread
        running = torch.tensor(int(thread is not None and thread.is_alive()))
        dist.all_reduce(running, op=dist.ReduceOp.MAX)
        return None if running else self.complete()

    def complete(self) -> int | None:
        """Waits for the background checkpoint, if any, and makes it the latest. Returns its iteration, else None."""
        job, self._in_flight = self._in_flight, None
        if job is None:
            return None
        if job.thread is not None:
            job.thread.join()
        everything: integrity.Checksums = {}
        self._agree(job.iteration, job.failure, job.found, everything)
        finish = job.writing.finish
        if finish is not None:
            added: integrity.Checksums = {}
            failure = self._attempt(lambda: added.update(finish()))
            self._agree(job.iteration, failure, added, everything)
        self._agree(job.iteration, self._attempt(lambda: self._commit(job.iteration, everything)))
        return job.iteration

    def collected(self, iteration: int, collect: Callable[[], object]):
        """Result of collect(). Raises CheckpointError on every rank if a rank lacks memory for it."""
        box, failure = [], None
        try:
            box.append(collect())
        except (MemoryError, RuntimeError) as error:
            if not is_of_memory(error):
                raise
            failure = f"rank {self.parallel.rank}: no memory to collect it: {str(error).splitlines()[0]}"
        self._agree(iteration, failure)
        return box[0]

    def _begin(self, building: Path) -> None:
        """Creates an empty directory, on a disk that can be written."""
        if self.parallel.is_first:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            probe = building / "probe"
            probe.write_bytes(bytes(_PROBE_BYTES))
            probe.unlink()

    def _write(self, job: _InFlight) -> None:
        job.failure = self._attempt(lambda: job.found.update(job.writing.write()))

    def _attempt(self, action: Callable[[], object]) -> str | None:
        """Runs an action and returns the reason of its failure, or None. Any error of a disk or library must reach the
        other ranks.
        """
        try:
            action()
        except Exception as error:
            return f"rank {self.parallel.rank}: {type(error).__name__}: {error}"
        self.parallel.pulse.beat("its part of a checkpoint")
        return None

    def _agree(
        self,
        iteration: int,
        failure: str | None,
        found: integrity.Checksums | None = None,
        everything: integrity.Checksums | None = None,
    ) -> None:
        """Raises CheckpointError on all ranks if one has failed. Merges all ranks' checksums into the first rank's
        `everything`.

        Ranks wait for each other as long as one of them keeps writing, however slow its disk.
        """

        def decide(reports: list[tuple]) -> str | None:
            if everything is not None:
                for _, facts in reports:
                    everything.update(facts)
            return _first([failure for failure, _ in reports])

        first_failure = meet("saving", self.parallel, (failure, found), decide)
        if first_failure is not None:
            if self.parallel.is_first:
                shutil.rmtree(self._building(iteration), ignore_errors=True)
                self._attempt(lambda: bring_back(self.root))
            raise CheckpointError(
                f"{self.root}: the checkpoint of iteration {iteration} is not saved ({first_failure}); earlier ones are as "
                "they were"
            )

    def _commit(self, iteration: int, checksums: integrity.Checksums) -> None:
        if not self.parallel.is_first:
            return
        building, final = self._building(iteration), layout.iteration_directory(self.root, iteration)
        integrity.write(checksums, building)
        bring_back(self.root)
        replaced = final.with_name(final.name + _REPLACED)
        if final.exists():  # a run resumed from an earlier iteration writes this one again
            atomic.rename(final, replaced)
        atomic.rename(building, final)
        atomic.write_text(self.root / layout.TRACKER, str(iteration))
        shutil.rmtree(replaced, ignore_errors=True)
        self._delete_old(iteration)

    def _delete_old(self, latest: int) -> None:
        if self.keep_last is None:
            return
        older = [number for number in layout.iterations(self.root) if number <= latest]
        for iteration in older[self.keep_last :]:
            if self.keep_every is None or iteration % self.keep_every:
                shutil.rmtree(layout.iteration_directory(self.root, iteration), ignore_errors=True)
                self.parallel.pulse.beat("deleting an old checkpoint")

    def _building(self, iteration: int) -> Path:
        final = layout.iteration_directory(self.root, iteration)
        return final.with_name(final.name + ".tmp")


def bring_back(root: Path) -> None:
    """Restores the name of a checkpoint whose replacement was never finished, and deletes replaced checkpoints."""
    for replaced in root.glob(f"iter_*{_REPLACED}"):
        final = replaced.with_name(replaced.name.removesuffix(_REPLACED))
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            atomic.rename(replaced, final)


def _first(reasons: list[str | None]) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)
