"""A training step of the quickstart's tiny network, where the arithmetic is a small part of the time: its overhead.

python benchmarks/small_step.py [--ranks 2] [--tp 2] [--iters 60]

The clips are drawn and encoded once, into --data. Then the training program runs as the quickstart runs it, and its own
report gives the seconds of a step; processor seconds are of all its processes between two steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from table import table

ROOT = Path(__file__).resolve().parents[1]
BATCH, CLIPS = 16, 96
FLAGS = """--mm-tool configs/tool/tools.json --model_custom_precision --use-distributed-optimizer
--optimizer-selection fused_ema_adamw --use-ema --ema-decay 0.99 --lr 3e-3 --lr-warmup-init 3e-3 --lr-decay-style cosine
--min-lr 0 --adam-eps 1e-15 --weight-decay 1e-4 --clip-grad 1.0 --clip_grad_ema_decay 0.99 --seed 1234 --log-interval 50
--accumulate-allreduce-grads-in-fp32"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or npu")
    parser.add_argument("--tree", type=Path, default=ROOT, help="repository whose program is measured")
    parser.add_argument("--data", type=Path, default=ROOT / "benchmarks/out/small_step", help="folder of encoded clips")
    parser.add_argument("--ranks", type=int, default=1, help="number of processes")
    parser.add_argument("--tp", type=int, default=1, help="tensor parallel size; the other ranks share the batch")
    parser.add_argument("--iters", type=int, default=60, help="number of steps; the first third warms up")
    options = parser.parse_args()
    options.data = options.data.resolve()
    if not (options.data / "features").exists():
        prepare(options.data)
    seconds, processor, loss = measure(options)
    layout = f"{options.ranks} ranks, TP {options.tp}"
    header = ["", "ms a step", "processor ms a step", "last loss"]
    print(table(header, [[layout, 1000 * seconds, 1000 * processor, repr(loss)]]))


def prepare(data: Path) -> None:
    """Draws and encodes the clips."""
    programs = (
        ("examples/quickstart/prepare.py", "--out", data, "--clips", CLIPS, "--seen", 2, "--unseen", 1),
        ("tools/extract_features.py", "--mm-data", data / "data.json", "--mm-model", data / "model.json")
        + ("--device", "cpu", "--model_custom_precision"),
    )
    for program in programs:
        subprocess.run([sys.executable, *map(str, program)], cwd=ROOT, check=True, stdout=sys.stderr)


def measure(options: argparse.Namespace) -> tuple[float, float, float]:
    """Median seconds of a step, processor seconds of a step, and the last loss."""
    first = options.iters // 3
    with tempfile.TemporaryDirectory() as out:
        report = Path(out, "metrics.jsonl")
        program = subprocess.Popen(command(options, out), cwd=options.tree, stdout=subprocess.DEVNULL)
        watched = psutil.Process(program.pid)
        spent: dict[int, float] = {}
        while program.poll() is None:
            done = report.read_bytes().count(b"\n") if report.exists() else 0
            if done >= first:
                spent[done] = _processor_seconds(watched) or spent.get(done, 0.0)
            time.sleep(0.01)
        if program.returncode:
            sys.exit(f"the training program ended with exit code {program.returncode}")
        steps = [json.loads(line) for line in report.read_text().splitlines()]
    steps = [step for step in steps if step["kind"] == "step"]
    last = max(number for number in spent if number < options.iters)  # the last step saves, too
    processor = (spent[last] - spent[min(spent)]) / (last - min(spent))
    return statistics.median(step["seconds"] for step in steps[first:]), processor, steps[-1]["loss"]


def command(options: argparse.Namespace, out: str) -> list[str]:
    files = ["--mm-data", options.data / "data.json", "--mm-model", options.data / "model.json", "--save", out]
    share = BATCH * options.tp // options.ranks
    sizes = {"micro-batch-size": share, "global-batch-size": BATCH, "tensor-model-parallel-size": options.tp}
    sizes |= dict.fromkeys(("train-iters", "lr-decay-iters", "save-interval"), options.iters)
    flags = [
        "--device",
        options.device,
        *FLAGS.split(),
        *(word for name, value in sizes.items() for word in (f"--{name}", value)),
    ]
    flags += ["--sequence-parallel"] if options.tp > 1 else []
    launcher = ["-m", "mindspeed_mm.torchrun", "--nproc_per_node", options.ranks, "--local-addr", "localhost"]
    return [sys.executable, *map(str, [*launcher, "pretrain_opensoraplan.py", *files, *flags])]


def _processor_seconds(program: psutil.Process) -> float | None:
    """Of a program and all its children; None if it is ending."""
    try:
        times = [process.cpu_times() for process in (program, *program.children(recursive=True))]
    except psutil.Error:
        return None
    return sum(time.user + time.system for time in times)


os.environ.setdefault("OMP_NUM_THREADS", "1")
if __name__ == "__main__":
    main()
