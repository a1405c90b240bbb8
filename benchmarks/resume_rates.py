"""Learning rates of a run that is resumed with another global batch, beside those of the run that never stopped.

python benchmarks/resume_rates.py [--iters 20] [--stop 10]

"samples" is Megatron's way: it counts position and length in samples of the current batch. "ours" counts updates.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.parallel.schedule import Position, Schedule

BATCH, LR = 4, 1e-3


def curve(style: str, warmup: int, iters: int, stop: int, batch: int, position: Position | None) -> list[float]:
    """Rates of all iterations; after `stop` the batch is `batch`, and the schedule continues at `position`."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
    optimizer.param_groups[0].update(max_lr=LR, min_lr=0.0)
    settings = OptimizerSettings(lr=LR, lr_decay_style=style, lr_decay_iters=iters, lr_warmup_iters=warmup)
    found, schedule = [], Schedule(optimizer, settings, BATCH)
    for iteration in range(iters):
        if iteration == stop and position is not None:
            schedule = Schedule(optimizer, settings, batch)
            schedule.restore(position)
        found.append(optimizer.param_groups[0]["lr"])
        schedule.advance()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iters", type=int, default=20, metavar="N")
    parser.add_argument("--stop", type=int, default=10, metavar="N", help="iteration after which the batch changes")
    options = parser.parse_args()
    for style, warmup in (("cosine", 4), ("linear", 0)):
        columns = {"unbroken": curve(style, warmup, options.iters, options.stop, BATCH, None)}
        for name, batch in (("x2", 2 * BATCH), ("/2", BATCH // 2)):
            ours = Position(options.stop, BATCH)
            samples = Position(options.stop * BATCH // batch, batch)
            columns[f"{name} ours"] = curve(style, warmup, options.iters, options.stop, batch, ours)
            columns[f"{name} samples"] = curve(style, warmup, options.iters, options.stop, batch, samples)
        print(f"{style}, warm-up {warmup}, batch {BATCH} until iteration {options.stop}")
        print("iteration " + " ".join(f"{name:>11}" for name in columns))
        for iteration, row in enumerate(zip(*columns.values(), strict=True), 1):
            print(f"{iteration:9d} " + " ".join(f"{rate:11.3e}" for rate in row))
        for name in list(columns)[1:]:
            worst = max(abs(a - b) for a, b in zip(columns[name], columns["unbroken"], strict=True))
            print(f"largest difference, {name}: {worst:.3e}")


if __name__ == "__main__":
    main()
