"""A run's directory of checkpoints, written so that none can be lost.

A checkpoint is built under a temporary name. When every rank has its files on the disk, the first rank records their
checksums, renames the directory and moves the tracker file. A crash, a full disk or a killed writer at any moment leaves
the previous checkpoint the latest. Writing may happen in a thread; everything that ranks have to agree on happens in the
caller's, because the steps of the training go on with collectives of their own.
"""

import dataclasses
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import files, integrity, layout
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.meeting import meet
from mindspeed_mm.parallel.shards import is_of_memory

_log = logs.get(__name__)
_PROBE_BYTES = 1 << 20
_REPLACED = ".old"  # ends the name of a checkpoint while one of the same iteration takes its place


@dataclasses.dataclass(frozen=True, slots=True)
class Writing:
    """How a rank writes its part of a checkpoint.

    write(): its files, in any thread; returns their checksums. finish(): what the ranks then do together, if anything;
    returns the checksums of files that this rank has added.
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
        """keep_last: how many of the latest to keep, None for all; iterations that keep_every divides are kept too."""
        self.root = root
        self.parallel = parallel
        self.in_background = in_background
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._in_flight: _InFlight | None = None

    # ------------------------------------------------------------------------------------------------------------ save

    def save(self, iteration: int, prepare: Callable[[Path], Writing]) -> None:
        """Write a checkpoint, or begin to; prepare(directory), on every rank, says how this one writes below it.

        Raises CheckpointError, on every rank, if it cannot be written; what was saved before stays as it is. One that is
        still being written in the background is completed first.
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
        """Complete the checkpoint in the background if every rank has written its part; its iteration if so."""
        if self._in_flight is None:
            return None
        running = torch.tensor(int(self._in_flight.thread.is_alive()))
        dist.all_reduce(running, op=dist.ReduceOp.MAX)
        return None if running else self.complete()

    def complete(self) -> int | None:
        """Wait for the checkpoint in the background, if there is one, and make it the latest; its iteration if so."""
        job, self._in_flight = self._in_flight, None
        if job is None:
            return None
        if job.thread is not None:
            job.thread.join()
        everything: integrity.Checksums = {}
        self._agree(job.iteration, job.failure, job.found, everything)
        if job.writing.finish is not None:
            added: integrity.Checksums = {}
            failure = self._attempt(lambda: added.update(job.writing.finish()))
            self._agree(job.iteration, failure, added, everything)
        self._agree(job.iteration, self._attempt(lambda: self._commit(job.iteration, everything)))
        return job.iteration

    def collected(self, iteration: int, collect: Callable[[], object]):
        """What collect() gives; CheckpointError on every rank if there is no memory for it on one."""
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
        """An empty directory, on a disk that takes something."""
        if self.parallel.is_first:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            probe = building / "probe"
            probe.write_bytes(bytes(_PROBE_BYTES))
            probe.unlink()

    def _write(self, job: _InFlight) -> None:
        job.failure = self._attempt(lambda: job.found.update(job.writing.write()))

    def _attempt(self, action: Callable[[], object]) -> str | None:
        """Why it failed, or None; any failure of a disk or a library must reach the other ranks as a report."""
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
        """If one rank has failed, CheckpointError on all of them. Adds what all have found to the first rank's `everything`.

        Ranks wait for each other as long as one of them goes on writing, however slow its disk.
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
        if final.exists():  # a run that was resumed from before this iteration writes it again
            final.rename(replaced)
        building.rename(final)
        files.flush_directory(self.root)
        files.write_text(str(iteration), self.root / layout.TRACKER)
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
    """Give a checkpoint its name back that was to be replaced by one that never came, and delete those that were."""
    for replaced in root.glob(f"iter_*{_REPLACED}"):
        final = replaced.with_name(replaced.name.removesuffix(_REPLACED))
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(final)


def _first(reasons: list[str | None]) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)
