"""Programs that `faults.py` disturbs, as commands, and what their files say."""

import json
import os
import sys
import time
from pathlib import Path

from fault_runs import ROOT, Started, expect

SCRIPT = ROOT / "examples" / "opensoraplan1.5" / "pretrain_opensoraplan1_5.sh"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--local-addr", "localhost")
# What docs/operations.md says to give torchrun itself.
TORCHRUN_STOPS = ("--shutdown-timeout", 600, "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
_COPIES = 100  # of each clip, for the programs that read a list once
OURS = ("-m", "mindspeed_mm.torchrun", "--nproc_per_node", 2, "--local-addr", "localhost")


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


def start(
    world: Path, launcher: str, save: str | None, attempt: int, interval: int = 1000, more: tuple = ()
) -> Started:
    """launcher: python (one rank), torchrun, ours, script, or container: the script as process 1 of a namespace."""
    if launcher in ("script", "container"):
        variables = {"MM_DATA": world / "data.json", "MM_MODEL": world / "model.json", "DEVICE": "cpu", "TP": 2}
        variables |= {"NPUS_PER_NODE": 2, "GBS": 2, "SAVE": world / save, "SAVE_INTERVAL": interval}
        variables |= {"LOG_DIR": world / "logs" / save, "RECOM_FFN_LAYERS": 0}
        around = () if launcher == "script" else ("unshare", "--pid", "--fork", "--mount-proc")
        return Started(world, [*around, "bash", SCRIPT, *more], attempt, variables)
    before = {"python": (), "torchrun": (*TORCHRUN, *TORCHRUN_STOPS), "ours": OURS}[launcher]
    program = [*before, ROOT / "pretrain_opensoraplan.py"]
    tensor = 1 if launcher == "python" else 2
    return Started(world, [sys.executable, *program, *flags(world, save, tensor, interval), *more], attempt)


def in_a_save(world: Path, save: str, timeout_s: float = 60.0) -> None:
    """Wait until a checkpoint is being written."""
    until = time.monotonic() + timeout_s
    while not list((world / save).glob("*.tmp")):
        expect(time.monotonic() < until, "no save to disturb")
        time.sleep(0.002)


def tracker(world: Path, save: str) -> int:
    return int((world / save / "latest_checkpointed_iteration.txt").read_text())


def sampling(world: Path) -> list:
    words = ["--mm-model", world / "sample.json", "--device", "cpu", "--load", _weights(world)]
    return [sys.executable, *OURS, ROOT / "inference.py", *words]


def _weights(world: Path) -> Path:
    """A run's folder; the first call makes it."""
    if not (world / "to_sample").exists():
        with start(world, "python", "to_sample", 0, more=("--exit-interval", 1)) as run:
            expect(run.end()[0] == 0, "no weights to sample with")
    return world / "to_sample"


def extraction(world: Path) -> list:
    files = ["--mm-data", _many(world), "--mm-model", world / "model.json", "--device", "cpu"]
    return [sys.executable, *OURS, ROOT / "tools" / "extract_features.py", *files, "--model_custom_precision"]


def checking(world: Path) -> list:
    return [sys.executable, ROOT / "tools" / "check_dataset.py", "--mm-data", _many(world), "--samples", 10_000]


def _many(world: Path) -> Path:
    """A data JSON of so many clips that the fault finds the program at work, with an empty folder for features."""
    clips, rows = world / "many", json.loads((world / "data" / "annotations.json").read_text())
    if not clips.exists():
        clips.mkdir()
        for number in range(_COPIES):
            for row in rows:
                os.link(world / "data" / "clips" / row["path"], clips / f"{number}_{row['path']}")
        copies = [{**row, "path": f"{number}_{row['path']}"} for number in range(_COPIES) for row in rows]
        (world / "many.json").write_text(json.dumps(copies))
        (world / "many.txt").write_text(f"{clips},{world / 'many.json'}\n")
    text = (world / "data.json").read_text().replace("/features", f"/features_{time.monotonic_ns()}")
    (world / "fresh.json").write_text(text.replace(str(world / "data" / "data.txt"), str(world / "many.txt")))
    return world / "fresh.json"


def serving(world: Path) -> list:
    words = ["--mm-model", world / "sample.json", "--load", _weights(world), "--port", 0, "--device", "cpu"]
    return [sys.executable, "-m", "mindspeed_mm.serve", *words]
