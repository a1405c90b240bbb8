"""Where the host's time of a small step goes, by function: a picture of stacks, for one rank and for TP 2.

python benchmarks/step_flame.py [--seconds 20] [--output docs/images/step_overhead.png]      # needs py-spy: pip install py-spy

py-spy takes samples of rank 0's main thread while `small_step.py`'s program trains. Wrappers of torch and the frames
between a step and its blocks are left out. A bar's width is the share of samples in which a function was on the stack.
"""

import argparse
import collections
import dataclasses
import hashlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import psutil
import small_step

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = (("one rank", 1, 1), ("two ranks, TP 2 with sequence parallel (rank 0)", 2, 2))
FIRST = "Trainer._one_step"
LEFT_OUT = re.compile(
    r"torch/(autograd/|nn/modules/module|_tensor|utils/_contextlib|_C|_ops|distributed/c10d_logger)|data_parallel_base|"
    r"^(deprecated|custom_bwd|maybe_recompute|recomputed|applied|SparseUMMDiT\._stages?|Denoiser\.forward|"
    r"FlowMatchingTask\.loss(_at)?)\b"
)
EXCHANGES = re.compile(r"megatron/core|torch/distributed|same_host")
LEAST, LEVELS = 0.004, 12  # share of a bar that is drawn; rows


@dataclasses.dataclass
class Node:
    """A function on the stack, and those that it called."""

    samples: int = 0
    exchange: bool = False
    calls: dict[str, "Node"] = dataclasses.field(default_factory=lambda: collections.defaultdict(Node))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=20, help="seconds of sampling, for each layout")
    parser.add_argument("--data", type=Path, default=ROOT / "benchmarks/out/small_step", help="folder of encoded clips")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/step_overhead.png", help="the picture")
    options = parser.parse_args()
    options.data = options.data.resolve()
    if not (options.data / "features").exists():
        small_step.prepare(options.data)
    trees = {name: tree(stacks(options, ranks, tensor)) for name, ranks, tensor in LAYOUTS}
    draw(trees, options.output)
    print(options.output)


def stacks(options: argparse.Namespace, ranks: int, tensor: int) -> list[str]:
    """Lines "frame;frame;... count" of rank 0's main thread."""
    run = argparse.Namespace(device="cpu", data=options.data, ranks=ranks, tp=tensor, iters=100_000)
    with tempfile.TemporaryDirectory() as out:
        program = subprocess.Popen(small_step.command(run, out), cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            report = Path(out, "metrics.jsonl")
            while not report.exists() or report.read_bytes().count(b"\n") < 10:
                if program.poll() is not None:
                    sys.exit(f"the training program ended with exit code {program.returncode}")
                time.sleep(0.2)
            target = first_rank(psutil.Process(program.pid))
            found = Path(out, "stacks.txt")
            command = ["py-spy", "record", "-p", target, "-d", options.seconds, "-r", 100, "-f", "raw", "-o", found]
            subprocess.run([*map(str, command), "--full-filenames"], check=True, stdout=subprocess.DEVNULL)
            return found.read_text().splitlines()
        finally:
            for process in psutil.Process(program.pid).children(recursive=True):
                process.kill()
            program.kill()
            program.wait()


def first_rank(launcher: psutil.Process) -> int:
    for process in launcher.children(recursive=True):
        if process.environ().get("RANK") == "0":
            return process.pid  # its data workers come later in the list
    sys.exit("no process of rank 0")


def tree(lines: list[str]) -> Node:
    """The samples inside a step, as calls from `Trainer._one_step` on."""
    root = Node()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        start = next((number for number, frame in enumerate(frames) if frame.startswith(FIRST)), None)
        if start is None:
            continue
        node = root
        node.samples += int(count)
        for frame in frames[start:]:
            if not LEFT_OUT.search(frame):
                node = node.calls[frame.partition(" (")[0]]
                node.samples += int(count)
                node.exchange = bool(EXCHANGES.search(frame))
    return root


def draw(trees: dict[str, Node], output: Path) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(len(trees), figsize=(14, 8.2), squeeze=False)
    for plot, (name, root) in zip(plots[:, 0], trees.items(), strict=True):
        title = f"{name}: {root.samples} samples of the host's main thread in training steps; blue: exchanges, megatron-core"
        plot.set_title(title, loc="left", fontsize=10)
        plot.set(xlim=(0, 1), ylim=(-LEVELS, 0))
        plot.axis("off")
        bars(plot, root, 0.0, 0, root.samples)
    figure.tight_layout()
    figure.savefig(output, dpi=100)


def bars(plot, node: Node, left: float, level: int, total: int) -> None:
    """The calls of a node from `left` on, the largest first, and theirs below."""
    for name, call in sorted(node.calls.items(), key=lambda item: -item[1].samples):
        width = call.samples / total
        if width < LEAST or level >= LEVELS:
            continue
        shade = 0.35 + 0.45 * (hashlib.sha256(name.encode()).digest()[0] / 255)
        colour = (matplotlib.colormaps["Blues"] if call.exchange else matplotlib.colormaps["YlOrBr"])(shade * 0.75)
        plot.barh(-level - 0.5, width, left=left, height=0.95, color=colour, edgecolor="white", linewidth=1)
        label = f"{name} {100 * width:.0f} %"
        if room := int(width * 190):
            plot.text(
                left + width / 2, -level - 0.5, label[:room], ha="center", va="center", fontsize=6.5, clip_on=True
            )
        bars(plot, call, left, level + 1, total)
        left += width


if __name__ == "__main__":
    main()
