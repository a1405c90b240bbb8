"""Kills random ranks of a training run at random moments, also during saves, and compares the result with an undisturbed run.

python benchmarks/soak_resume.py [--steps 200] [--kills 10] [--ranks 2] [--tensor 2] [--seed 0]

Two runs of the quickstart's tiny model: one undisturbed, one under `torchrun --max-restarts` whose ranks get `kill -9`.
Every second kill waits for a save in progress. Afterwards all weights, averages and optimizer states of the last
checkpoints are compared bit for bit. Exit code 0: equal; 1: not.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a checkout without installing it

from mindspeed_mm.files import layout, torch_state  # noqa: E402

_ITERATION = re.compile(r"iteration +(\d+)/\d+ ")
_RESUMED = re.compile(r"resumed from .* at iteration (\d+)")
_SAVE_WAIT_S = 60.0


@dataclasses.dataclass(slots=True)
class Kill:
    """A fault, its rank and its cost."""

    rank: int
    iteration: int
    saving: bool
    resumed: int | None = None
    seconds: float | None = None  # until the next step was done

    def row(self, number: int) -> str:
        moment = "during a save" if self.saving else "between saves"
        lost = "" if self.resumed is None else f"{self.iteration - self.resumed}"
        seconds = "" if self.seconds is None else f"{self.seconds:.1f}"
        return (
            f"{number:>4} {self.rank:>5} {self.iteration:>10} {moment:>15} {self.resumed!s:>13} {lost:>11} {seconds:>9}"
        )


class Killer:
    """Reads a run's output, and kills a rank each time the next iteration of its list is reached."""

    def __init__(self, process: subprocess.Popen, run: Path, moments: list[int], chance: random.Random):
        self.process, self.run, self.chance = process, run, chance
        self.moments = list(moments)
        self.kills: list[Kill] = []
        self.tail: list[str] = []
        self._since = 0.0
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Until the run ends."""
        for line in self.process.stdout:
            self.tail = [*self.tail[-120:], line]
            resumed, iteration = _RESUMED.search(line), _ITERATION.search(line)
            if resumed and self.kills:
                self.kills[-1].resumed = int(resumed.group(1))
            if iteration:
                self._step(int(iteration.group(1)))
        self.process.wait()

    def _step(self, iteration: int) -> None:
        if self.kills and self.kills[-1].seconds is None:
            self.kills[-1].seconds = time.monotonic() - self._since
        busy = self._thread is not None and self._thread.is_alive()
        if self.moments and iteration >= self.moments[0] and not busy:
            self.moments.pop(0)
            saving = len(self.kills) % 2 == 1
            self._thread = threading.Thread(target=self._kill, args=(iteration, saving), daemon=True)
            self._thread.start()

    def _kill(self, iteration: int, saving: bool) -> None:
        if saving:
            saving = self._wait_for_save()
        time.sleep(self.chance.uniform(0.0, 0.02 if saving else 0.5))
        ranks = list(ranks_of(self.process.pid).items())
        if not ranks:
            return
        rank, pid = self.chance.choice(ranks)
        self._since = time.monotonic()
        self.kills.append(Kill(rank, max(iteration, self._latest()), saving))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _latest(self) -> int:
        found = [_ITERATION.search(line) for line in self.tail]
        return max((int(match.group(1)) for match in found if match), default=0)

    def _wait_for_save(self) -> bool:
        end = time.monotonic() + _SAVE_WAIT_S
        while time.monotonic() < end:
            if any(self.run.glob("*.tmp")):
                return True
            time.sleep(0.001)
        return False


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank -> process id of the processes that a torchrun has started itself, from /proc."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
            rank = next((int(item[5:]) for item in variables if item.startswith(b"RANK=")), None)
            if parent == launcher and rank is not None:
                found[rank] = int(folder.name)
    return found


def start(world: Path, run: Path, options: argparse.Namespace, max_restarts: int, save_interval: int):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", options.ranks, "--master_port", port]
    launcher += ["--max-restarts", max_restarts, "--monitor-interval", 0.2]
    flags = ["--mm-data", world / "data.json", "--mm-model", world / "model.json", "--device", "cpu"]
    flags += ["--model_custom_precision"]
    flags += ["--tensor-model-parallel-size", options.tensor, "--use-distributed-optimizer", "--lr", 1e-3]
    flags += ["--global-batch-size", options.ranks // options.tensor * 2, "--train-iters", options.steps]
    flags += ["--optimizer-selection", "fused_ema_adamw", "--use-ema", "--clip_grad_ema_decay", 0.99]
    flags += ["--save", run, "--load", run, "--save-interval", save_interval, "--async-save", "--log-interval", 1]
    flags += ["--sequence-parallel"] if options.tensor > 1 else []
    command = [sys.executable, *launcher, ROOT / "pretrain_opensoraplan.py", *flags]
    return subprocess.Popen(
        [str(word) for word in command],
        env={"OMP_NUM_THREADS": "1", **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def different(one: Path, other: Path) -> list[str]:
    """Names of what is not the same in two runs' last checkpoints."""
    found = []
    for mine, theirs in zip(_parts(one), _parts(other), strict=True):
        if mine.keys() != theirs.keys():
            return sorted(mine.keys() ^ theirs.keys())
        found += [name for name in mine if not bool((mine[name] == theirs[name]).all())]
    return found


def _parts(run: Path) -> list[dict]:
    """All tensors of each TP rank's files, by name."""
    ranks = layout.rank_files(layout.find(run).directory)
    found = []
    for file in ranks:
        state, optimizer = torch_state.load(file), torch_state.load(file.with_name(layout.OPTIMIZER_FILE))
        groups = {"model": state["model"], "ema_model": state["ema_model"], **optimizer}
        found.append({f"{group}.{name}": t for group, ts in groups.items() for name, t in ts.items() if t is not None})
    return found


def prepare(world: Path) -> None:
    """The quickstart's set, small, with its clips and captions encoded."""
    networks = ["--mm-data", world / "data.json", "--mm-model", world / "model.json", "--model_custom_precision"]
    for program in (
        ["examples/quickstart/prepare.py", "--out", world, "--clips", 16],
        ["tools/extract_features.py", *networks, "--device", "cpu"],
    ):
        words = [sys.executable, ROOT / program[0], *program[1:]]
        subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def soak(world: Path, options: argparse.Namespace) -> bool:
    chance = random.Random(options.seed)
    prepare(world)
    print(f"undisturbed: {options.steps} steps on {options.ranks} ranks, TP {options.tensor}", flush=True)
    begin = time.monotonic()
    calm = Killer(start(world, world / "calm", options, 0, options.steps), world / "calm", [], chance)
    calm.watch()
    calm_seconds = time.monotonic() - begin
    moments = sorted(chance.sample(range(2, options.steps - 1), options.kills))
    print(f"disturbed: kills from iterations {', '.join(map(str, moments))}", flush=True)
    begin = time.monotonic()
    process = start(world, world / "storm", options, options.kills, options.save_interval)
    storm = Killer(process, world / "storm", moments, chance)
    storm.watch()
    storm_seconds = time.monotonic() - begin
    for killer in (calm, storm):
        if killer.process.returncode != 0:
            print("".join(killer.tail))
            raise SystemExit(f"the run ended with exit code {killer.process.returncode}")
    print("kill  rank  iteration          moment  resumed from  steps lost  seconds*")
    for number, kill in enumerate(storm.kills, 1):
        print(kill.row(number))
    print("* from the kill to the first step of the restarted ranks")
    names = different(world / "calm", world / "storm")
    print(f"kills: {len(storm.kills)} of {options.kills}, {sum(kill.saving for kill in storm.kills)} during a save")
    print(f"time, disturbed / undisturbed: {storm_seconds / calm_seconds:.2f}")
    print("end weights, averages, optimizer: " + (f"DIFFERENT: {names[:5]}" if names else "bitwise equal"))
    return not names and len(storm.kills) == options.kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tensor", type=int, default=2, help="TP size")
    parser.add_argument("--save-interval", type=int, default=5, help="save interval of the disturbed run, steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and ranks of the faults")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        return 0 if soak(Path(folder), options) else 1


if __name__ == "__main__":
    sys.exit(main())
