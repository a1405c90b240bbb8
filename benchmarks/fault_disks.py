"""Rows of `faults.py` about disks, memory and ranks that are slow, full, late or stuck: made by a patch of one function."""

import functools
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from fault_runs import ROOT, Row, Started, expect

# Each patch is put before the program's start; `rank` is known in it.
_PROGRAM = """
import os, sys, time
sys.path.insert(0, {root!r})
rank = int(os.environ.get("RANK", "0"))
{patch}
from mindspeed_mm.launch import {entry}
{entry}()
"""
_SLOW_SAVE = """
from mindspeed_mm.files import torch_state
save = torch_state.save
def slowly(state, path, *beat):
    for _ in range(6):
        time.sleep(2)
        for tell in beat:
            tell("a part of a file")
    return save(state, path, *beat)
torch_state.save = slowly
"""
_HANGING_SAVE = """
from mindspeed_mm.files import torch_state
torch_state.save = lambda *values: time.sleep(10_000)
"""
_NO_ROOM = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""
_FULL_IN_SECOND_SAVE = """
from mindspeed_mm.files import torch_state
save, calls = torch_state.save, []
def full(state, path, *beat):
    calls.append(path)
    if "iter_0000002" in str(path):
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
        raise OSError(28, "No space left on device")
    write(self, kind, values)
reports.JsonLines._write = full
"""
_FULL_FOR_RECORDS = """
from mindspeed_mm.sampling import record
def full(path, entry):
    raise OSError(28, "No space left on device")
record.write = full
"""
_LATE_RANK = """
from mindspeed_mm.training import build
denoiser = build._denoiser
def late(*values):
    time.sleep(20 if rank == 1 else 0)
    return denoiser(*values)
build._denoiser = late
"""
_STUCK_RANK = """
from mindspeed_mm.training.step import TrainStep
step, calls = TrainStep.__call__, []
def stuck_here(self, batches):
    calls.append(1)
    if rank == 1 and len(calls) == 3:
        time.sleep(10_000)
    return step(self, batches)
TrainStep.__call__ = stuck_here
"""


def disk_rows(launcher: tuple, flags: Callable[..., list], sampling: Callable[[Path], list]) -> list[Row]:
    """launcher: of two ranks; flags(world, save, tensor size, save interval): of a training; sampling: a command."""

    def start(world: Path, name: str, patch: str, more: tuple = (), interval: int = 2) -> Started:
        program = world / f"{name}.py"
        program.write_text(_PROGRAM.format(root=str(ROOT), patch=patch, entry="pretrain"))
        return Started(world, [sys.executable, *launcher, program, *flags(world, name, 1, interval), *more])

    def goes_on(patch: str, name: str, marks: tuple[str, ...], more: tuple, world: Path, attempt: int) -> None:
        """The run passes the fault, says what it should, and ends as asked."""
        with start(world, name, patch, (*more, "--exit-interval", 6)) as run:
            found, _ = run.end()
            expect(found == 0, f"exit code {found}")
            expect(all(mark in run.text() for mark in marks), "not said as promised")
            expect(run.saved() == 6 * (attempt + 1), "the last iteration is not saved")

    def ends(patch: str, name: str, code: int, marks: tuple[str, ...], more: tuple, world: Path, attempt: int) -> float:
        with start(world, name, patch, more) as run:
            found, took = run.end()
            expect(found == code, f"exit code {found}")
            expect(all(mark in run.text() for mark in marks), "not said as promised")
            return took

    def two_runs(world: Path, attempt: int) -> None:
        with start(world, "two_runs", "", interval=1000) as first:
            first.wait_for(r"iteration +\d+/")
            with start(world, "two_runs", "") as second:
                found, _ = second.end()
                expect(found == 1 and "in use by another run" in second.text(), f"exit code {found}")
                expect(second.text().count("error: ") == 1, "not one line")
            first.send(signal.SIGTERM)
            expect(first.end()[0] == 0, "the first run is disturbed")

    def full_for_samples(world: Path, attempt: int) -> None:
        words = sampling(world)
        place = words.index(ROOT / "inference.py")
        program = world / "full_for_samples.py"
        program.write_text(_PROGRAM.format(root=str(ROOT), patch=_FULL_FOR_RECORDS, entry="inference"))
        with Started(world, [*words[:place], program, *words[place + 1 :]]) as run:
            found, _ = run.end()
            expect(found == 1 and "samples could not be made" in run.text(), f"exit code {found}")
            expect("Traceback" not in run.text(), "a traceback")

    def small_shared_memory(world: Path, attempt: int) -> float:
        words = [sys.executable, ROOT / "pretrain_opensoraplan.py", *flags(world, "shm", 1, 1000)]
        text = " ".join(map(str, words))
        mount = f"mount -t tmpfs -o size=64k tmpfs /dev/shm && exec {text}"
        with Started(world, ["unshare", "-m", "sh", "-c", mount]) as run:
            found, took = run.end()
            expect(found == 1 and "/dev/shm has " in run.text(), f"exit code {found}")
            expect("Traceback" not in run.text(), "a traceback")
            return took

    limit = ("--distributed-timeout-minutes", 0.1)
    hang = ("--hang-timeout-minutes", 0.2)
    rows = [
        Row(
            "a save takes 12 s, a collective may take 6 s",
            "saves, the run goes on",
            functools.partial(goes_on, _SLOW_SAVE, "slow_disk", ("saved iteration 2",), limit),
            most=3,
        ),
        Row(
            "a disk hangs in a save",
            "exit 75, stacks of all ranks",
            functools.partial(ends, _HANGING_SAVE, "hanging_disk", 75, ("no progress for 12 s",), hang),
            most=3,
        ),
        Row(
            "a full disk at the start",
            "one line, exit 1",
            functools.partial(ends, _NO_ROOM, "full_at_start", 1, ("error: --save ", "cannot be written"), ()),
            most=5,
        ),
        Row(
            "a full disk in a save",
            "said, the run goes on, the next save succeeds",
            functools.partial(goes_on, _FULL_IN_SECOND_SAVE, "full_in_save", ("saved iteration",), ()),
            most=1,
        ),
        Row(
            "a full disk in reports",
            "said once, and again when it works; the run goes on",
            functools.partial(
                goes_on, _FULL_FOR_REPORTS, "full_reports", ("going on without it", "is written again"), ()
            ),
            most=3,
        ),
        Row("a full disk in sampling", "every sample is tried, exit 1, no traceback", full_for_samples, most=3),
        Row("two runs in one --save", "the second: one line, exit 1; the first goes on", two_runs, most=5),
        Row(
            "a rank is 20 s late with its weights, a collective may take 6 s",
            "the run starts",
            functools.partial(goes_on, _LATE_RANK, "late_rank", ("saved iteration",), limit),
            most=3,
        ),
        Row(
            "a rank hangs in a step",
            "exit 75, stacks of all ranks, its line of code in them",
            functools.partial(ends, _STUCK_RANK, "stuck_rank", 75, ("no progress for 12 s", "stuck_here"), hang),
            most=3,
        ),
    ]
    if shutil.which("unshare"):
        rows.append(Row("/dev/shm of 64 KiB", "one line with its size and num_workers, exit 1", small_shared_memory, 3))
    return rows
