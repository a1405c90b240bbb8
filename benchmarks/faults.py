"""Faults made on purpose: what README and docs/operations.md promise about the end of a run, and what is seen.

    python benchmarks/faults.py [--tries 20] [--only WORDS]

One table: fault, tries, what is promised, what was seen, and the longest time from the fault to the end. Runs of the
quickstart's tiny model on CPUs, two ranks unless it says otherwise. Exit code 0: every promise was kept each time.
"""

import argparse
import contextlib
import functools
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fault_disks import disk_rows
from fault_runs import ROOT, Row, Started, expect, make_world
from table import table

SCRIPT = ROOT / "examples" / "opensoraplan1.5" / "pretrain_opensoraplan1_5.sh"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--local-addr", "localhost")
# What docs/operations.md says to give torchrun itself.
TORCHRUN_STOPS = ("--shutdown-timeout", 600, "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
OURS = ("-m", "mindspeed_mm.torchrun", "--nproc_per_node", 2, "--local-addr", "localhost")
HEADER = ["fault", "tries", "promised", "seen", "longest s"]
SAVES = "saves, exit 0, nothing left, the next start goes on"


def flags(world: Path, save: str | None, tensor: int, interval: int) -> list:
    words = ["--mm-data", world / "data.json", "--mm-model", world / "model.json", "--device", "cpu"]
    words += [
        "--model_custom_precision",
        "--tensor-model-parallel-size",
        tensor,
        "--lr",
        1e-3,
        "--train-iters",
        100_000,
    ]
    words += ["--global-batch-size", 2, "--log-interval", 1, "--save-interval", interval, "--num-workers", 2]
    return words if save is None else [*words, "--save", world / save, "--load", world / save]


def start(world: Path, launcher: str, save: str | None, interval: int = 1000, more: tuple = ()) -> Started:
    """launcher: python (one rank), torchrun, ours, script."""
    if launcher == "script":
        variables = {"MM_DATA": world / "data.json", "MM_MODEL": world / "model.json", "DEVICE": "cpu", "TP": 2}
        variables |= {"NPUS_PER_NODE": 2, "GBS": 2, "SAVE": world / save, "SAVE_INTERVAL": interval}
        variables |= {"LOG_DIR": world / "logs" / save, "RECOM_FFN_LAYERS": 0}
        return Started(world, ["bash", SCRIPT, *more], variables)
    before = {"python": (), "torchrun": (*TORCHRUN, *TORCHRUN_STOPS), "ours": OURS}[launcher]
    program = [*before, ROOT / "pretrain_opensoraplan.py"]
    tensor = 1 if launcher == "python" else 2
    return Started(world, [sys.executable, *program, *flags(world, save, tensor, interval), *more])


def in_a_save(world: Path, save: str, timeout_s: float = 60.0) -> None:
    """Wait until a checkpoint is being written."""
    until = time.monotonic() + timeout_s
    while not list((world / save).glob("*.tmp")):
        expect(time.monotonic() < until, "no save to disturb")
        time.sleep(0.002)


def tracker(world: Path, save: str) -> int:
    return int((world / save / "latest_checkpointed_iteration.txt").read_text())


# ----------------------------------------------------------------------------------------------------------------- signals


def stopped(launcher: str, number: int, to_group: bool, code: int, world: Path, attempt: int) -> float:
    """A signal at a random moment of a step; in every second try, while a checkpoint is written."""
    save = f"{launcher}_{signal.Signals(number).name}_{'group' if to_group else 'one'}"
    saving = attempt % 2 == 1
    with start(world, launcher, save, interval=2 if saving else 1000) as run:
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


def without_save(number: int, world: Path, attempt: int) -> float:
    with start(world, "python", None) as run:
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
        "from mindspeed_mm.files import torch_state\nfrom mindspeed_mm.launch import pretrain\nsave = torch_state.save\n"
        f"def slowly(*values):\n    time.sleep({seconds})\n    return save(*values)\n"
        "torch_state.save = slowly\npretrain()\n"
    )
    before = {"torchrun": (*TORCHRUN, *TORCHRUN_STOPS), "ours": OURS}[launcher]
    with Started(world, [sys.executable, *before, program, *flags(world, save, 2, 1000)]) as run:
        run.wait_for(r"iteration +\d+/")
        run.send(signal.SIGTERM)
        found, took = run.end()
        _check_saved(run, world, save, found, code)
        return took


def early(launcher: str, world: Path, attempt: int) -> float:
    """SIGTERM as soon as there is a handler, or a little later: at another moment in each try."""
    save = f"early_{launcher}"
    with start(world, launcher, save) as run:
        run.wait_for_a_handler(signal.SIGTERM)
        time.sleep(0.7 * attempt)
        run.send(signal.SIGTERM)
        found, took = run.end()
        expect(found == 0, f"exit code {found}")
        expect("Traceback" not in run.text(), "a traceback")
        return took


def ctrl_c(launcher: str, twice: bool, world: Path, attempt: int) -> float:
    save = f"ctrl_c_{launcher}"
    with start(world, launcher, save) as run:
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
    with start(world, "ours", save, more=words) as run:
        found, _ = run.end()
        _check_saved(run, world, save, found, 0)
        if attempt:
            expect(f"resumed from {world / save}" in run.text(), "the next start does not go on")
    return None


def interrupted(command: Callable[[Path], list], mark: str, number: int, world: Path, attempt: int) -> float:
    """Another program than the training, which has nothing to save."""
    with Started(world, command(world)) as run:
        run.wait_for(mark)
        time.sleep(random.Random(attempt).uniform(0.0, 0.5))
        run.send(number, to_group=True)
        found, took = run.end()
        expect(found == 128 + number, f"exit code {found}")
        expect("Traceback" not in run.text(), "a traceback")
        expect(took < 30, f"took {took:.0f} s")
        return took


def sampling(world: Path) -> list:
    """Uses the weights of a run that the first try makes."""
    if not (world / "to_sample").exists():
        with start(world, "python", "to_sample", more=("--exit-interval", 1)) as run:
            expect(run.end()[0] == 0, "no weights to sample with")
    words = [
        ROOT / "inference.py",
        "--mm-model",
        world / "sample.json",
        "--device",
        "cpu",
        "--load",
        world / "to_sample",
    ]
    return [sys.executable, *OURS, *words]


def extraction(world: Path) -> list:
    files = ["--mm-data", world / "fresh.json", "--mm-model", world / "model.json", "--device", "cpu"]
    text = (world / "data.json").read_text().replace("/features", f"/features_{time.monotonic_ns()}")
    (world / "fresh.json").write_text(text)
    return [sys.executable, *OURS, ROOT / "tools" / "extract_features.py", *files, "--model_custom_precision"]


def checking(world: Path) -> list:
    return [sys.executable, ROOT / "tools" / "check_dataset.py", "--mm-data", world / "data.json", "--samples", 10_000]


def serving(world: Path) -> list:
    return [
        sys.executable,
        "-m",
        "mindspeed_mm.serve",
        "--mm-model",
        world / "sample.json",
        "--port",
        0,
        "--device",
        "cpu",
    ]


# ----------------------------------------------------------------------------------------------------------------- kill -9


def killed(launcher: str, which: str, form: str, world: Path, attempt: int) -> float:
    """kill -9 of one process; in every second try, while a checkpoint is written."""
    save = f"killed_{launcher}_{which}_{form}"
    with start(world, launcher, save, interval=2, more=("--ckpt-format", form)) as run:
        run.wait_for(r"saved iteration")
        if attempt:
            expect(f"resumed from {world / save}" in run.text(), "the next start does not go on")
        if attempt % 2:
            in_a_save(world, save)
        ranks = run.ranks()
        victim = {"the launcher": run.process.pid, "rank 0": ranks[0], "the last rank": ranks[-1]}[which]
        os.kill(victim, signal.SIGKILL)
        found, took = run.end()
        expect(found == 137, f"exit code {found}")
        return took


def killed_worker(world: Path, attempt: int) -> None:
    with start(world, "script", "killed_worker") as run:
        run.wait_for(r"iteration +\d+/")
        os.kill(random.Random(attempt).choice(run.workers()), signal.SIGKILL)
        at = run.iteration()
        run.wait_for(rf"iteration +({at + 20}|{at + 21})/")
        run.send(signal.SIGTERM)
        found, _ = run.end()
        expect(found == 0, f"exit code {found}")


def lost_node(world: Path, attempt: int) -> float:
    """Two launchers on 127.0.0.1 are two nodes; all processes of the second one are killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [ROOT / "pretrain_opensoraplan.py", *flags(world, "lost_node", 2, 2)]
    meet = ["--nnodes", 2, "--nproc_per_node", 1, "--master_addr", "127.0.0.1", "--master_port", port]
    nodes = [
        Started(world, [sys.executable, "-m", "mindspeed_mm.torchrun", *meet, "--node_rank", node, *words])
        for node in range(2)
    ]
    with nodes[0] as first, nodes[1] as second:
        first.wait_for(r"saved iteration")
        for pid in second.processes():
            os.kill(pid, signal.SIGKILL)
        found, took = first.end()
        expect(found != 0, "exit code 0")
        expect("rank 1 is gone" in first.text(), "the lost rank is not named")
        return took


def second_run(world: Path, attempt: int) -> None:
    """Two runs of the script on one machine, neither given a port."""
    with start(world, "script", f"first_{attempt}") as one, start(world, "script", f"second_{attempt}") as other:
        for run in (one, other):
            run.wait_for(r"iteration +\d+/")
            run.send(signal.SIGTERM)
        for run in (one, other):
            found, _ = run.end()
            expect(found == 0, f"exit code {found}")


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
    rows += [
        Row(
            "SIGTERM without --save",
            "exit 0, the log claims no saving",
            functools.partial(without_save, signal.SIGTERM),
        ),
        Row("SIGTERM, a save takes 35 s", SAVES, functools.partial(slow, "ours", 35, 0), most=3),
        Row(
            "SIGTERM to torchrun with the two flags, a save takes 35 s",
            "saves, exit 1",
            functools.partial(slow, "torchrun", 35, 1),
            most=2,
        ),
        Row("SIGTERM in the first seconds, python", "exit 0", functools.partial(early, "python")),
        Row("SIGTERM in the first seconds, the script", "exit 0", functools.partial(early, "script")),
        Row("Ctrl-C, python", "one line, saves, exit 130, < 30 s", functools.partial(ctrl_c, "python", False)),
        Row("Ctrl-C, the script", "one line, saves, exit 130, < 30 s", functools.partial(ctrl_c, "script", False)),
        Row("Ctrl-C twice, python", "exit 130 at once, nothing left", functools.partial(ctrl_c, "python", True)),
        Row("Ctrl-C twice, the script", "exit 130 at once, nothing left", functools.partial(ctrl_c, "script", True)),
        Row("--exit-interval 3", SAVES, functools.partial(planned, ("--exit-interval", 3)), most=5),
        Row("--exit-duration-in-mins 0.1", SAVES, functools.partial(planned, ("--exit-duration-in-mins", 0.1)), most=5),
    ]
    programs = (
        ("inference.py", sampling, "TP 1, CP 1, DP 2"),
        ("extract_features.py", extraction, "crops of clips to encode"),
        ("check_dataset.py", checking, ""),
        ("serve", serving, "the page is at"),
    )
    for name, command, mark in programs:
        for number in (signal.SIGINT, signal.SIGTERM):
            attempt = functools.partial(interrupted, command, mark, number)
            rows.append(Row(f"{number.name}, {name}", f"exit {128 + number}, no traceback, nothing left", attempt, 5))
    return rows


def kill_rows() -> list[Row]:
    rows = []
    for launcher, which in (
        ("python", "the launcher"),
        ("script", "the launcher"),
        ("script", "rank 0"),
        ("script", "the last rank"),
        ("torchrun", "the launcher"),
    ):
        for form in ("torch", "torch_dist"):
            name = "the process" if launcher == "python" else which
            attempt = functools.partial(killed, launcher, which, form)
            promised = "exit 137, nothing left, the next start goes on"
            rows.append(Row(f"kill -9 of {name}, {launcher}, {form}", promised, attempt))
    return [
        *rows,
        Row("kill -9 of a data worker", "the run goes on", killed_worker),
        Row("all processes of one of two nodes die", "the other names the rank and ends", lost_node, most=5),
        Row("two runs of the script on one machine", "each has its port", second_run, most=5),
    ]


ROWS: list[Callable[[], list[Row]]] = [signal_rows, kill_rows, functools.partial(disk_rows, OURS, flags, sampling)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20, metavar="N", help="tries of each fault (default 20)")
    parser.add_argument("--only", default="", metavar="WORDS", help="rows whose fault has these words")
    parser.add_argument("--world", type=Path, metavar="DIR", help="keep the runs here, for another call to go on with")
    options = parser.parse_args()
    rows = [row for make in ROWS for row in make() if options.only.lower() in row.fault.lower()]
    cells = []
    with contextlib.ExitStack() as stack:
        world = options.world or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults_")))
        if not (world / "features").exists():
            make_world(world)
        for row in rows:
            cells.append(row.run(world, options.tries))
            print(table(HEADER, cells[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(HEADER, cells))
    return 0 if all(f"{row[1]} of {row[1]} " in row[3] for row in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
