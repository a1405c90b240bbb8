"""Rows of `faults.py` about signals, and ends that are planned."""

import functools
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fault_programs import (
    OURS,
    TORCHRUN,
    TORCHRUN_STOPS,
    checking,
    extraction,
    flags,
    in_a_save,
    sampling,
    serving,
    start,
    tracker,
)
from fault_runs import COLD_TRIES, ROOT, Row, Started, expect

PLACES_OF_A_START = (r"TP \d, CP", "rows are used", "an epoch has", "denoiser: ", "starting from|resumed from")
SAVES = "saves, exit 0, nothing left, the next start goes on"


def stopped(launcher: str, number: int, to_group: bool, code: int, world: Path, attempt: int) -> float:
    """A signal at a random moment of a step; in every second try, while a checkpoint is written."""
    save = f"{launcher}_{signal.Signals(number).name}_{'group' if to_group else 'one'}"
    saving = attempt % 2 == 1
    with start(world, launcher, save, attempt, interval=2 if saving else 1000) as run:
        run.wait_for(r"iteration +\d+/")
        if attempt:
            expect(f"resumed from {world / save}" in run.text(), "the next start does not go on")
        if saving:
            in_a_save(world, save)
        else:
            time.sleep(random.Random(attempt).uniform(0.0, 1.0))
        run.send(number, to_group)
        found, took = run.end()
        _check_saved(run, world, save, found, code)
        if launcher == "script":
            (log,) = sorted((world / "logs" / save).glob("*.log"))[-1:]
            expect(f"saved iteration {run.saved()} " in log.read_text(), "the log file lacks 'saved'")
        if launcher != "torchrun":
            expect("Traceback" not in run.text(), "a traceback")
        return took


def _check_saved(run: Started, world: Path, save: str, found: int, code: int) -> None:
    expect(found == code, f"exit code {found}")
    expect(run.saved() > 0, "nothing is said to be saved")
    expect(run.saved() == tracker(world, save) == run.iteration(), "not the last iteration is saved")


def evaluating(world: Path) -> tuple:
    return ("--eval-data", world / "data" / "data.txt", "--eval-interval", 2, "--eval-iters", 10)


def with_samples(world: Path) -> tuple:
    return ("--mm-sample", world / "sample.json", "--sample-interval", 2)


def without_save(number: int, world: Path, attempt: int) -> float:
    with start(world, "python", None, attempt) as run:
        run.wait_for(r"iteration +\d+/")
        run.send(number)
        found, took = run.end()
        expect(found == 0, f"exit code {found}")
        expect("nothing is saved without --save" in run.text() and "saving" not in run.text(), "claims to save")
        return took


def slow(launcher: str, seconds: int, code: int, world: Path, attempt: int) -> float:
    """A save that takes longer than the 30 s that torchrun gives by itself."""
    save = f"slow_{launcher}"
    program = world / "slow_save.py"
    program.write_text(
        f"import sys, time\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from mindspeed_mm.files import torch_state\nfrom mindspeed_mm.cli.training import train\nsave = torch_state.save\n"
        f"def slowly(*values):\n    time.sleep({seconds})\n    return save(*values)\n"
        "torch_state.save = slowly\ntrain()\n"
    )
    before = {"torchrun": (*TORCHRUN, *TORCHRUN_STOPS), "ours": OURS}[launcher]
    with Started(world, [sys.executable, *before, program, *flags(world, save, 2, 1000)], attempt) as run:
        run.wait_for(r"iteration +\d+/")
        run.send(signal.SIGTERM)
        found, took = run.end()
        _check_saved(run, world, save, found, code)
        return took


def early(launcher: str, world: Path, attempt: int) -> float:
    """SIGTERM before the first step: in even tries as soon as there is a handler or some seconds later, while modules are
    imported; in odd ones at another place of the start in each try.
    """
    save, chance = f"early_{launcher}", random.Random(attempt)
    with start(world, launcher, save, attempt=COLD_TRIES * (attempt % 2)) as run:
        if attempt % 2 == 0:
            run.wait_for_a_handler(signal.SIGTERM)
            time.sleep(attempt and chance.uniform(0.0, 8.0))
        else:
            run.wait_for(PLACES_OF_A_START[attempt // 2 % len(PLACES_OF_A_START)])
            time.sleep(chance.uniform(0.0, 0.2))
        run.send(signal.SIGTERM)
        found, took = run.end()
        expect(found == 0, f"exit code {found}")
        expect("Traceback" not in run.text(), "a traceback")
        return took


def between(flags_of_it: Callable[[Path], tuple], mark: str, world: Path, attempt: int) -> float:
    """SIGTERM while the run evaluates or samples."""
    save = f"{flags_of_it.__name__}_{attempt}"  # a folder of its own, or the run would resume behind the mark
    with start(world, "ours", save, attempt, more=flags_of_it(world)) as run:
        run.wait_for(mark)
        time.sleep(random.Random(attempt).uniform(0.0, 0.5))
        run.send(signal.SIGTERM)
        found, took = run.end()
        _check_saved(run, world, save, found, 0)
        expect("Traceback" not in run.text(), "a traceback")
        return took


def to_one_rank(world: Path, attempt: int) -> float:
    with start(world, "ours", "one_rank", attempt) as run:
        run.wait_for(r"iteration +\d+/")
        os.kill(run.ranks()[attempt % 2], signal.SIGTERM)
        found, took = run.end()
        _check_saved(run, world, "one_rank", found, 0)
        return took


def to_process_1(world: Path, attempt: int) -> float:
    """What `docker stop` and Kubernetes do."""
    with start(world, "container", "container", attempt) as run:
        run.wait_for(r"iteration +\d+/")
        (first,) = (pid for pid, parent in run.processes().items() if parent == run.process.pid)
        os.kill(first, signal.SIGTERM)
        found, took = run.end()
        _check_saved(run, world, "container", found, 0)
        expect("Traceback" not in run.text(), "a traceback")
        return took


def two_kinds(first: int, second: int, code: int, world: Path, attempt: int) -> float:
    """Two signals, one after the other."""
    save = f"two_kinds_{signal.Signals(first).name}"
    with start(world, "script", save, attempt) as run:
        run.wait_for(r"iteration +\d+/")
        run.send(first, to_group=True)
        time.sleep(random.Random(attempt).uniform(0.0, 0.5))
        if run.process.poll() is None:
            run.send(second, to_group=True)
        found, took = run.end()
        expect(found in (0, code), f"exit code {found}")
        _check_saved(run, world, save, found, found)
        expect("Traceback" not in run.text(), "a traceback")
        return took


def paused(seconds: float, world: Path, attempt: int) -> float | None:
    """SIGSTOP of a rank. seconds: until its SIGCONT; infinity for none."""
    with start(world, "ours", "paused", attempt) as run:
        run.wait_for(r"iteration +\d+/")
        rank = run.ranks()[-1]
        os.kill(rank, signal.SIGSTOP)
        if seconds == math.inf:
            found, took = run.end()
            expect(found == 75, f"exit code {found}")
            expect("rank 1 is gone: no sign of life for 60 s" in run.text(), "the stopped rank is not named")
            return took
        time.sleep(seconds)
        at = run.iteration()
        os.kill(rank, signal.SIGCONT)
        run.wait_for(rf"iteration +{at + 3}/")
        run.send(signal.SIGTERM)
        found, _ = run.end()
        _check_saved(run, world, "paused", found, 0)
    return None


def ctrl_c(launcher: str, twice: bool, world: Path, attempt: int) -> float:
    save = f"ctrl_c_{launcher}"
    with start(world, launcher, save, attempt) as run:
        run.wait_for(r"iteration +\d+/")
        run.send(signal.SIGINT, to_group=True)
        if twice:
            time.sleep(0.3)
            if run.process.poll() is None:
                run.send(signal.SIGINT, to_group=True)
        found, took = run.end()
        text = run.text()
        expect(text.count("Ctrl-C") == 1 and "Traceback" not in text, "not one line")
        if not twice:
            _check_saved(run, world, save, found, 130)
        expect(found == 130, f"exit code {found}")
        expect(took < 30, f"took {took:.0f} s")
        return took


def planned(words: tuple, world: Path, attempt: int) -> float | None:
    save = f"planned_{words[0].strip('-')}"
    with start(world, "ours", save, attempt, more=words) as run:
        found, _ = run.end()
        _check_saved(run, world, save, found, 0)
        if attempt:
            expect(f"resumed from {world / save}" in run.text(), "the next start does not go on")
    return None


def interrupted(command: Callable[[Path], list], mark: str, number: int, world: Path, attempt: int) -> float:
    """Another program than the training, which has nothing to save."""
    with Started(world, command(world), attempt) as run:
        run.wait_for(mark)
        time.sleep(random.Random(attempt).uniform(0.0, 0.5))
        run.send(number, to_group=True)
        found, took = run.end()
        expect(found == 128 + number, f"exit code {found}")
        expect("Traceback" not in run.text(), "a traceback")
        expect(took < 30, f"took {took:.0f} s")
        return took


def signal_rows() -> list[Row]:
    rows = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        for launcher, to_group in (("python", False), ("ours", False), ("script", False), ("script", True)):
            where = {"python": "python, one process", "ours": "mindspeed_mm.torchrun", "script": "the script's bash"}
            target = "the script's group" if to_group else where[launcher]
            attempt = functools.partial(stopped, launcher, number, to_group, 0)
            rows.append(Row(f"{number.name} to {target}", SAVES, attempt))
        attempt = functools.partial(stopped, "torchrun", number, False, 1)
        rows.append(Row(f"{number.name} to torchrun with the two flags", "saves, exit 1, nothing left", attempt))
    return [*rows, *_special_rows(), *_program_rows()]


def _special_rows() -> list[Row]:
    return [
        Row(
            "SIGTERM without --save",
            "exit 0, the log claims no saving",
            functools.partial(without_save, signal.SIGTERM),
            most=10,
        ),
        Row("SIGTERM, a save takes 35 s", SAVES, functools.partial(slow, "ours", 35, 0), most=3),
        Row(
            "SIGTERM to torchrun with the two flags, a save takes 35 s",
            "saves, exit 1",
            functools.partial(slow, "torchrun", 35, 1),
            most=2,
        ),
        Row("SIGTERM in the first seconds, python", "exit 0", functools.partial(early, "python"), most=10),
        Row("SIGTERM in the first seconds, the script", "exit 0", functools.partial(early, "script"), most=10),
        Row(
            "SIGHUP to the script's group", SAVES, functools.partial(stopped, "script", signal.SIGHUP, True, 0), most=5
        ),
        Row("SIGTERM to one rank", SAVES, to_one_rank, most=5),
        *([Row("SIGTERM to the script as process 1", SAVES, to_process_1, most=3)] if shutil.which("unshare") else []),
        Row(
            "SIGTERM, then Ctrl-C",
            "saves, exit 130 or 0, nothing left",
            functools.partial(two_kinds, signal.SIGTERM, signal.SIGINT, 130),
            most=5,
        ),
        Row(
            "SIGUSR1, then SIGTERM",
            "saves, exit 0, nothing left",
            functools.partial(two_kinds, signal.SIGUSR1, signal.SIGTERM, 0),
            most=5,
        ),
        Row(
            "SIGTERM in an evaluation", SAVES, functools.partial(between, evaluating, "encoding held-out clips"), most=3
        ),
        Row("SIGTERM in --mm-sample", SAVES, functools.partial(between, with_samples, r"iteration +2/"), most=3),
        Row("SIGSTOP of a rank for 20 s", "the run goes on", functools.partial(paused, 20.0), most=2),
        Row(
            "SIGSTOP of a rank for ever",
            "exit 75, the rank is named, nothing left",
            functools.partial(paused, math.inf),
            2,
        ),
        Row("Ctrl-C, python", "one line, saves, exit 130, < 30 s", functools.partial(ctrl_c, "python", False)),
        Row("Ctrl-C, the script", "one line, saves, exit 130, < 30 s", functools.partial(ctrl_c, "script", False)),
        Row(
            "Ctrl-C twice, python", "exit 130 at once, nothing left", functools.partial(ctrl_c, "python", True), most=10
        ),
        Row(
            "Ctrl-C twice, the script",
            "exit 130 at once, nothing left",
            functools.partial(ctrl_c, "script", True),
            most=10,
        ),
        Row("--exit-interval 3", SAVES, functools.partial(planned, ("--exit-interval", 3)), most=5),
        Row("--exit-duration-in-mins 0.1", SAVES, functools.partial(planned, ("--exit-duration-in-mins", 0.1)), most=5),
    ]


def _program_rows() -> list[Row]:
    rows = []
    programs = (
        ("inference.py", sampling, "TP 1, CP 1, DP 2"),
        ("extract_features.py", extraction, "crops of clips to encode"),
        ("check_dataset.py", checking, "decoding: "),
        ("serve", serving, "the page is at"),
    )
    for name, command, mark in programs:
        for number in (signal.SIGINT, signal.SIGTERM):
            attempt = functools.partial(interrupted, command, mark, number)
            rows.append(Row(f"{number.name}, {name}", f"exit {128 + number}, no traceback, nothing left", attempt, 5))
    return rows
