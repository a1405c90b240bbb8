"""Rows of `faults.py` about disks, memory and ranks that are slow, full, late or stuck: made by a patch of one function."""

import dataclasses
import functools
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from fault_runs import ROOT, Row, Started, expect

# Each patch is put before the program's start; it knows `rank` and calls `made` when it makes its fault.
_MADE = "the fault is made"
_PROGRAM = """
import os, sys, time
sys.path.insert(0, {root!r})
rank = int(os.environ.get("RANK", "0"))
def made():
    print("{made}", flush=True)
{patch}
from mindspeed_mm.cli.{entry}
start()
"""
_SLOW_SAVE = """
from mindspeed_mm.files import torch_state
save = torch_state.save
def slowly(state, path, *beat):
    made()
    for _ in range(6):
        time.sleep(2)
        for tell in beat:
            tell("a part of a file")
    return save(state, path, *beat)
torch_state.save = slowly
"""
_HANGING_SAVE = """
from mindspeed_mm.files import torch_state
def hangs(*values):
    made()
    time.sleep(10_000)
torch_state.save = hangs
"""
_NO_ROOM = """
import resource
made()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""
_FULL_IN_A_SAVE = """
from mindspeed_mm.files import torch_state
save = torch_state.save
def full(state, path, *beat):
    if int(str(path).split("iter_")[1][:7]) % 6 == 2:
        made()
        raise OSError(28, "No space left on device")
    return save(state, path, *beat)
torch_state.save = full
"""
_FULL_FOR_REPORTS = """
from mindspeed_mm.training import reports
write, lines = reports.JsonLines._write, []
def full(self, kind, values):
    lines.append(kind)
    if 2 <= len(lines) <= 3:
        made()
        raise OSError(28, "No space left on device")
    write(self, kind, values)
reports.JsonLines._write = full
"""
_FULL_FOR_RECORDS = """
from mindspeed_mm.sampling import record
def full(path, entry):
    made()
    raise OSError(28, "No space left on device")
record.write = full
"""
_LATE_RANK = """
from mindspeed_mm.training import build
denoiser = build._denoiser
def late(*values):
    if rank == 1:
        made()
        time.sleep(20)
    return denoiser(*values)
build._denoiser = late
"""
_STUCK_RANK = """
from mindspeed_mm.training.step import TrainStep
step, calls = TrainStep.__call__, []
def stuck_here(self, batches):
    calls.append(1)
    if rank == 1 and len(calls) == 3:
        made()
        time.sleep(10_000)
    return step(self, batches)
TrainStep.__call__ = stuck_here
"""


@dataclasses.dataclass(frozen=True)
class Faults:
    """Trainings on two ranks, and a sampling, with one function patched."""

    launcher: tuple
    flags: Callable[..., list]  # (world, save, tensor size, save interval): a training's
    sampling: Callable[[Path], list]  # (world): a command

    def start(
        self, world: Path, name: str, attempt: int, patch: str = "", more: tuple = (), interval: int = 2
    ) -> Started:
        program = _program(world, name, patch, "training import train as start")
        words = [sys.executable, *self.launcher, program, *self.flags(world, name, 1, interval), *more]
        return Started(world, words, attempt)

    def goes_on(self, name: str, patch: str, marks: tuple[str, ...], more: tuple, world: Path, attempt: int) -> None:
        """The run passes the fault, says what it should, and ends as asked."""
        with self.start(world, name, attempt, patch, (*more, "--exit-interval", 6)) as run:
            found, _ = run.end()
            expect(found == 0, f"exit code {found}")
            expect(all(mark in run.text() for mark in (_MADE, *marks)), "not said as promised")
            expect(run.saved() == run.iteration() > 0, "the last iteration is not saved")

    def ends(self, name: str, patch: str, code: int, marks: tuple[str, ...], more: tuple, world: Path, attempt: int):
        """The run ends by itself, says what it should; returns the seconds that the whole run took."""
        with self.start(world, name, attempt, patch, more) as run:
            found, took = run.end()
            expect(found == code, f"exit code {found}")
            expect(all(mark in run.text() for mark in (_MADE, *marks)), "not said as promised")
            return took

    def two_runs(self, world: Path, attempt: int) -> None:
        with self.start(world, "two_runs", attempt, interval=1000) as first:
            first.wait_for(r"iteration +\d+/")
            with self.start(world, "two_runs", attempt) as second:
                found, _ = second.end()
                expect(found == 1 and "in use by another run" in second.text(), f"exit code {found}")
                expect(second.text().count("in use by another run") == 1, "said more than once")
                expect("Traceback" not in second.text(), "a traceback")
            first.send(signal.SIGTERM)
            expect(first.end()[0] == 0, "the first run is disturbed")

    def full_for_samples(self, world: Path, attempt: int) -> None:
        words = self.sampling(world)
        words[words.index(ROOT / "inference.py")] = _program(
            world, "full_samples", _FULL_FOR_RECORDS, "sampling import sample as start"
        )
        with Started(world, words, attempt) as run:
            found, _ = run.end()
            expect(found == 1 and "samples could not be made" in run.text(), f"exit code {found}")
            expect(_MADE in run.text() and "Traceback" not in run.text(), "a traceback, or no fault")

    def small_shared_memory(self, world: Path, attempt: int) -> float:
        words = [sys.executable, ROOT / "pretrain_opensoraplan.py", *self.flags(world, "shm", 1, 1000)]
        text = " ".join(map(str, words))
        mount = f"mount -t tmpfs -o size=64k tmpfs /dev/shm && exec {text}"
        with Started(world, ["unshare", "-m", "sh", "-c", mount], attempt) as run:
            found, took = run.end()
            expect(found == 1 and "/dev/shm has " in run.text(), f"exit code {found}")
            expect("Traceback" not in run.text(), "a traceback")
            return took


def _program(world: Path, name: str, patch: str, entry: str) -> Path:
    program = world / f"{name}.py"
    program.write_text(_PROGRAM.format(root=str(ROOT), made=_MADE, patch=patch, entry=entry))
    return program


def disk_rows(faults: Faults) -> list[Row]:
    limit = ("--distributed-timeout-minutes", 0.1)
    hang = ("--hang-timeout-minutes", 0.2)
    goes_on = {  # fault, what is promised: name, patch, what the log says, flags
        ("a save takes 12 s, a collective may take 6 s", "saves, the run goes on"): (
            ("slow_disk", _SLOW_SAVE, ("saved iteration",), limit)
        ),
        ("a full disk in a save", "said, the run goes on, the next save succeeds"): (
            ("full_in_save", _FULL_IN_A_SAVE, ("the checkpoint of iteration", "is not saved"), ())
        ),
        ("a full disk in reports", "said once, and again when it works; the run goes on"): (
            ("full_reports", _FULL_FOR_REPORTS, ("going on without it", "is written again"), ())
        ),
        ("a rank is 20 s late with its weights, a collective may take 6 s", "the run starts"): (
            ("late_rank", _LATE_RANK, ("saved iteration",), limit)
        ),
    }
    ends = {  # the same, with the exit code before what the log says
        ("a disk hangs in a save", "exit 75, stacks of all ranks"): (
            ("hanging_disk", _HANGING_SAVE, 75, ("no progress for 12 s",), hang)
        ),
        ("a full disk at the start", "one line, exit 1"): (
            ("full_at_start", _NO_ROOM, 1, ("error: --save ", "cannot be written"), ())
        ),
        ("a rank hangs in a step", "exit 75, stacks of all ranks, its line of code in them"): (
            ("stuck_rank", _STUCK_RANK, 75, ("no progress for 12 s", "stuck_here"), hang)
        ),
    }
    rows = [Row(*said, functools.partial(faults.goes_on, *values), most=3) for said, values in goes_on.items()]
    rows += [Row(*said, functools.partial(faults.ends, *values), most=3) for said, values in ends.items()]
    rows += [
        Row("a full disk in sampling", "every sample is tried, exit 1, no traceback", faults.full_for_samples, most=3),
        Row("two runs in one --save", "the second: one line, exit 1; the first goes on", faults.two_runs, most=5),
    ]
    if shutil.which("unshare"):
        promised = "one line with its size and num_workers, exit 1"
        rows.append(Row("/dev/shm of 64 KiB", promised, faults.small_shared_memory, most=3))
    return rows
