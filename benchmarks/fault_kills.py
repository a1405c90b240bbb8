"""Rows of `faults.py` about processes that are killed, nodes that are lost, and runs side by side."""

import functools
import os
import random
import signal
import socket
import sys
from pathlib import Path

from fault_programs import flags, in_a_save, start
from fault_runs import ROOT, Row, Started, expect


def killed(launcher: str, which: str, form: str, world: Path, attempt: int) -> float:
    """kill -9 of one process; in every second try, while a checkpoint is written."""
    save = f"killed_{launcher}_{which}_{form}"
    with start(world, launcher, save, attempt, interval=2, more=("--ckpt-format", form)) as run:
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
    with start(world, "script", "killed_worker", attempt) as run:
        run.wait_for(r"iteration +\d+/")
        os.kill(random.Random(attempt).choice(run.workers()), signal.SIGKILL)
        at = run.iteration()
        run.wait_for(rf"iteration +({at + 10}|{at + 11})/")
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
        Started(world, [sys.executable, "-m", "mindspeed_mm.torchrun", *meet, "--node_rank", node, *words], attempt)
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
    with (
        start(world, "script", f"first_{attempt}", attempt) as one,
        start(world, "script", f"second_{attempt}", attempt) as other,
    ):
        for run in (one, other):
            run.wait_for(r"iteration +\d+/")
            run.send(signal.SIGTERM)
        for run in (one, other):
            found, _ = run.end()
            expect(found == 0, f"exit code {found}")


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
            rows.append(Row(f"kill -9 of {name}, {launcher}, {form}", promised, attempt, most=10))
    return [
        *rows,
        Row("kill -9 of a data worker", "the run goes on", killed_worker),
        Row("all processes of one of two nodes die", "the other names the rank and ends", lost_node, most=3),
        Row("two runs of the script on one machine", "each has its port", second_run, most=3),
    ]
