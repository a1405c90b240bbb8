#!/usr/bin/env python
"""Step time and memory of the quickstart's tiny model with stored features against encoding on the fly, and whether the
losses are the same to the last bit.

    python benchmarks/feature_store.py [--steps 30] [--device cpu] [--output result.json]

Both runs and the extraction are the commands that a user types. Medians are over the second half of the steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        result = measure(folder, options)
    print(json.dumps(result, indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1))


def measure(folder: Path, options) -> dict:
    command("examples/quickstart/prepare.py", "--out", folder, "--clips", options.clips)
    change(folder / "data.json", "dataset_param", "preprocess_parameters", fixed_crops=1)
    change(folder / "data.json", "dataset_param", "basic_parameters", feature_folder=str(folder / "features"))
    off = train(folder, "off", options)
    begin = time.perf_counter()
    command("tools/extract_features.py", *files(folder, options))
    extraction = time.perf_counter() - begin
    change(folder / "model.json", load_video_features=True, load_text_features=True)
    on = train(folder, "on", options)
    return {
        "losses_equal_bit_for_bit": [step["loss"] for step in off] == [step["loss"] for step in on],
        "steps": len(on),
        "seconds_per_step": {"off": seconds(off), "on": seconds(on)},
        "step_time_on_over_off": round(seconds(on) / seconds(off), 3),
        "peak_gib": {"off": peak(off), "on": peak(on)},
        "memory_on_over_off": round(peak(on) / peak(off), 3),
        "extraction_seconds_for_all_clips_start_included": round(extraction, 1),
    }


def train(folder: Path, name: str, options) -> list[dict]:
    """The steps of a run, as in its metrics.jsonl."""
    flags = ["--lr", 1e-3, "--train-iters", options.steps, "--save", folder / name, "--save-interval", 10**6]
    command("pretrain_opensoraplan.py", *files(folder, options), *flags, "--num-workers", 0)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [step for step in map(json.loads, lines) if step["kind"] == "step"]


def files(folder: Path, options) -> list:
    return ["--mm-data", folder / "data.json", "--mm-model", folder / "model.json", "--device", options.device]


def command(program: str, *flags) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / program), *map(str, flags)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{program} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def change(path: Path, *block: str, **values) -> None:
    """Set keys of a block of a JSON file."""
    content = json.loads(path.read_text())
    target = content
    for key in block:
        target = target[key]
    target.update(values)
    path.write_text(json.dumps(content, indent=1))


def seconds(steps: list[dict]) -> float:
    return round(statistics.median(step["seconds"] for step in steps[len(steps) // 2 :]), 4)


def peak(steps: list[dict]) -> float:
    return round(max(step["memory_gib"] for step in steps), 3)


if __name__ == "__main__":
    main()
