"""What only an accelerator can tell: its tests, the whole path on it, and every table, in one Markdown file.

    bash benchmarks/accelerator.sh [--device cuda] [--output FILE]   # eight minutes on one card
    bash benchmarks/accelerator.sh --dry-run                         # the same programs at small sizes on a CPU

A part that fails or takes longer than its limit is named in the file, and the next one runs. The exit code is 1 then.
The goals: at v1.5's width half of an H100's peak (column "of the card's peak"), and SUV 1.55 times as fast as dense.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import table  # and the path to the package

from mindspeed_mm import atomic
from mindspeed_mm.platforms.select import select

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Part:
    """One program. words: its arguments on a card; small: in a dry run. {device} stands for the device.

    limit_s: for a card; seconds after which it is ended. variables: of its environment. needs: a package; without it the part
    is left out, in a line.
    """

    title: str
    program: str
    words: str
    small: str
    limit_s: float
    variables: str = ""
    needs: str = "torch"


PARTS = (
    Part("What this machine has", "-m mindspeed_mm doctor", "", "", 30),
    Part(
        "Tests on the device: the original's numbers",
        "-m pytest -q -p no:cacheprovider -m device tests/device",
        "",
        "-k autoencoder",
        90,
        "TEST_DEVICE={device}",
    ),
    Part(
        "The whole path: clips, features, training, merging, sampling, judging",
        "bash examples/quickstart/run.sh",
        "",
        "",
        90,
        "FAST=1 RANKS=1 DEVICE={device} OUT={out}",
    ),
    Part(
        "Attention by sparsity, 121x576x1024",
        "benchmarks/attention.py --device {device}",
        "--extent 16 36 64 --width 3072 --dtype bf16",
        "--extent 2 8 8 --width 128 --repeats 1",
        40,
    ),
    Part(
        "The denoiser's step at v1.5's width",
        "benchmarks/denoiser.py --device {device}",
        "--extent 8 36 36 --width 3072 --dtype bf16 --compile --fp8-format hybrid",
        "--extent 2 8 8 --width 128 --fp8-format hybrid --stages 2 2 2 --sparsities 2 4 2 --repeats 1",
        90,
    ),
    Part(
        "Recomputation",
        "benchmarks/recompute.py --device {device}",
        "--extent 8 24 24 --width 3072 --dtype bf16 --repeats 3",
        "--extent 2 8 8 --width 128 --repeats 1",
        40,
    ),
    Part(
        "A small step: overhead",
        "benchmarks/small_step.py --device {device}",
        "--data {out}/small_step",
        "--data {out}/small_step --iters 6",
        40,
    ),
    Part(
        "The autoencoder",
        "benchmarks/vae.py --device {device}",
        "--frames 17 33 --size 256 256 --channels 160 --dtype bf16",
        "--frames 9 --timed-frames 9 --size 64 64 --channels 8 --repeats 1",
        40,
    ),
    Part(
        "Sampling 121x576x1024 with random weights",
        "benchmarks/sample.py --device {device}",
        "--dtype bf16 --width 3072 --channels 160 --size 121 576 1024 --repeats 1 --steps 4",
        "--width 128 --channels 8 --size 9 64 64 --decode 9 64 64 --tile 64 16 --repeats 1 --steps 2",
        120,
    ),
    Part("Merging shards", "benchmarks/convert.py", "--size-gb 2 --runs 1", "--size-gb 0.6 --runs 1", 60),
    Part(
        "Data: a 1080p clip to tokens",
        "benchmarks/data_throughput.py",
        "--repeats 2 --memory-clips 20",
        "--repeats 1 --memory-clips 10",
        60,
        needs="decord",
    ),
)


def main() -> None:
    options = arguments()
    platform = select("cpu" if options.dry_run else options.device)
    if platform.name == "cpu" and not options.dry_run:
        sys.exit("error: no GPU or NPU here; --dry-run tries the same programs on a CPU")
    output = options.output or ROOT / "benchmarks" / "out" / f"accelerator_{platform.name}.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if options.only is None or options.only.lower() in part.title.lower()]
    texts, failures, begun = [heading(platform.name, options.dry_run)], [], time.monotonic()
    for number, part in enumerate(chosen, start=1):
        print(f"{number}/{len(chosen)} {part.title} ...", flush=True)
        code, text, seconds = run(part, platform.name, options.dry_run, output.parent / "accelerator")
        print(f"    {'done' if code == 0 else f'failed ({code})'} after {seconds:.0f} s", flush=True)
        failures += [part.title] if code else []
        texts.append(text)
        atomic.write_text(output, "\n\n".join(texts) + "\n")  # after each part: an end from outside keeps the rest
    print(f"{len(chosen) - len(failures)} of {len(chosen)} parts ran in {time.monotonic() - begun:.0f} s: {output}")
    if failures:
        sys.exit(f"failed: {', '.join(failures)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda or npu; default: the one that is here")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: one of the device, in benchmarks/out")
    parser.add_argument("--only", metavar="WORDS", help="only the parts with these words in their title")
    parser.add_argument("--dry-run", action="store_true", help="the same programs at small sizes on a CPU")
    return parser.parse_args()


def heading(device: str, dry_run: bool) -> str:
    """What the file is about: card, versions, commit, day."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    card = "a CPU" if device == "cpu" else torch.get_device_module(device).get_device_name(0)
    lines = [
        ["device", card],
        ["torch", torch.__version__],
        ["commit", commit.stdout.strip() or "unknown"],
        ["day", f"{datetime.date.today()}"],
    ]
    title = "# A dry run on a CPU: its figures mean nothing" if dry_run else f"# On {card}"
    return f"{title}\n\n{table(['', ''], lines)}"


def run(part: Part, device: str, dry_run: bool, folder: Path) -> tuple[int, str, float]:
    """Exit code, Markdown and seconds of a part."""
    if importlib.util.find_spec(part.needs) is None:
        return 0, f"## {part.title}\n\nLeft out: it needs {part.needs}, which is not installed.", 0.0
    places = {"device": device, "out": folder}
    words = f"{part.program} {part.small if dry_run else part.words}".format(**places).split()
    command = words if words[0] == "bash" else [sys.executable, *words]
    variables = dict(word.split("=", 1) for word in part.variables.format(**places).split())
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} if device == "cpu" else {}
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **threads, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=None if dry_run else part.limit_s,
        )
        code, printed = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, printed = 124, (error.stdout or b"").decode(errors="replace")
    seconds = time.monotonic() - begun
    shown = " ".join([*(f"{name}={value}" for name, value in variables.items() if name != "OUT"), *words])
    return code, section(part.title, shown.replace(str(folder), "OUT"), code, printed, seconds), seconds


def section(title: str, command: str, code: int, printed: str, seconds: float) -> str:
    """A part as Markdown: its tables as they are, else its last lines."""
    lines = [line for line in printed.splitlines() if line.strip()]
    tables = [line for line in lines if line.startswith("|")]
    ending = f"{seconds:.0f} s" if code == 0 else f"failed with exit code {code} after {seconds:.0f} s"
    body = "\n".join(tables if tables and code == 0 else ["```", *lines[-30:], "```"])
    return f"## {title}\n\n`{command}`: {ending}\n\n{body}"


if __name__ == "__main__":
    main()
