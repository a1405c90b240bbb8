"""Rules of the step cache against each other, on a trained model: work, time, distance from the full run, a judge's score.

    python benchmarks/step_cache.py --mm-model sample.json                      # table and comparison
    python benchmarks/step_cache.py --mm-model sample.json --plot cache.png --judge examples/quickstart/score.py

Interval rules (N) are the baseline. The last lines say, for each rule that the network decides, how much faster it is than
the interval rules at equal distance and how much nearer at equal work, read off the line between their points.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, too

from common import STAGES, clock_of, synchronize, table

from mindspeed_mm.config.sample import SampleModelConfig, SamplingOptions
from mindspeed_mm.config.step_cache import CacheRule
from mindspeed_mm.evaluation import judge
from mindspeed_mm.platforms.select import select
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.prompt_files import read_prompts
from mindspeed_mm.sampling.requests import Request
from mindspeed_mm.schema import build, read_json

RULES = (
    *("2", "3", "4", "6"),
    *("auto:0.08", "auto:0.12", "auto:0.18", "auto:0.25"),
    *("2+taylor", "3+taylor", "4+taylor", "6+taylor"),
    *("auto:0.08+taylor", "auto:0.12+taylor", "auto:0.18+taylor", "auto:0.25+taylor"),
)
OFF = "1"


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """A rule's results. inner: share of the steps in which the inner stages ran. blocks: share of the block passes, with
    this model's blocks. v1_5: the same with v1.5's. time: seconds / those without cache. distance: rms of the latents'
    difference from the full run / their rms; worst: of the farthest sample. score: the judge's mean in percent.
    """

    rule: str
    inner: float
    blocks: float
    v1_5: float
    time: float
    distance: float
    worst: float
    score: float | None


def main() -> None:
    flags = parse()
    select(flags.device).prepare()
    model = build(SampleModelConfig, read_json(flags.mm_model))
    changed = {"num_inference_steps": flags.steps, "solver": flags.solver}
    diffusion = dataclasses.replace(model.diffusion, **{name: value for name, value in changed.items() if value})
    model = dataclasses.replace(model, diffusion=diffusion)
    options = SamplingOptions(guidance_mode=flags.cfg_mode)
    pipeline = T2VPipeline.from_config(model, device=flags.device, options=options)
    lines = read_prompts(model.prompt)[: flags.prompts]
    requests = [Request(model.for_prompt(line), flags.seed, (number, 0)) for number, line in enumerate(lines)]
    points = measure(pipeline, requests, flags)
    text = report(points, model, requests, flags)
    print(text)
    if flags.json:
        Path(flags.json).write_text(json.dumps([dataclasses.asdict(point) for point in points], indent=1) + "\n")
    if flags.plot:
        plot(points, Path(flags.plot), f"{len(requests)} prompts, {diffusion.num_inference_steps} steps")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mm-model", metavar="JSON", required=True, help="an inference JSON with trained weights")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "npu"))
    parser.add_argument("--prompts", type=int, default=24, help="prompts of the JSON's file that are sampled")
    parser.add_argument("--batch", type=int, default=1, help="samples together; a rule decides for the whole batch")
    parser.add_argument("--cfg-mode", default="sequential", choices=("sequential", "batched"))
    parser.add_argument("--steps", type=int, help="default: the JSON's")
    parser.add_argument("--solver", help="default: the JSON's")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--rules", nargs="+", default=RULES, metavar="RULE", help="values of --step-cache")
    parser.add_argument("--repeats", type=int, default=1, help="times that all rules take turns")
    parser.add_argument("--judge", metavar="PLACE", help="as of mindspeed-mm evaluate; decodes every video")
    parser.add_argument("--json", metavar="FILE", help="write the points to this file")
    parser.add_argument("--plot", metavar="PNG", help="draw work against distance")
    return parser.parse_args()


class Counter:
    """Counts the passes of the first and of the inner stages."""

    def __init__(self, network):
        self.outer = self.inner = 0
        stages = network.transformer_blocks
        stages[0][0].register_forward_hook(self._outer)
        stages[1][0].register_forward_hook(self._inner)
        self.blocks = [len(stage) for stage in stages]

    def _outer(self, *_) -> None:
        self.outer += 1

    def _inner(self, *_) -> None:
        self.inner += 1

    def share(self) -> float:
        """Share of the passes that ran the inner stages since the last call."""
        share = self.inner / self.outer
        self.reset()
        return share

    def reset(self) -> None:
        self.outer = self.inner = 0


def measure(pipeline: T2VPipeline, requests: Sequence[Request], flags: argparse.Namespace) -> list[Point]:
    """All rules, by turns; the first is none."""
    counter, clock = Counter(pipeline.denoiser), clock_of(flags.device)
    judged = judge.load(flags.judge) if flags.judge else None
    batches = [requests[first : first + flags.batch] for first in range(0, len(requests), flags.batch)]
    pipeline.encode(batches[0])
    pipeline.denoise(batches[0], progress=False)  # warms up
    rules = (OFF, *flags.rules)
    latents: dict[str, Tensor] = {}
    inner: dict[str, float] = {}
    seconds: dict[str, list[float]] = {rule: [] for rule in rules}
    for _ in range(flags.repeats):
        for rule in tqdm(rules, desc="rules", disable=None):
            pipeline.options = dataclasses.replace(pipeline.options, step_cache=rule)
            counter.reset()
            synchronize(flags.device)
            started = clock()
            latents[rule] = torch.cat([pipeline.denoise(batch, progress=False) for batch in batches])
            synchronize(flags.device)
            seconds[rule].append(clock() - started)
            inner[rule] = counter.share()
            error = distances_of(latents[rule], latents[OFF]).square().mean().sqrt().item()
            tqdm.write(f"{rule}: inner stages in {inner[rule]:.3f} of the steps, distance {error:.4f}", file=sys.stderr)
    points = []
    for rule in rules:
        ratios = [one / full for one, full in zip(seconds[rule], seconds[OFF], strict=True)]
        distances = distances_of(latents[rule], latents[OFF])
        score = None if judged is None else score_of(judged, pipeline, requests, latents[rule])
        points.append(
            Point(
                rule,
                inner[rule],
                work(inner[rule], counter.blocks),
                work(inner[rule], STAGES),
                statistics.median(ratios),
                distances.square().mean().sqrt().item(),
                distances.max().item(),
                score,
            )
        )
    return points


def distances_of(latents: Tensor, full: Tensor) -> Tensor:
    """Relative rms distance of each sample [B] from the full run."""
    return (latents - full).flatten(1).norm(dim=1) / full.flatten(1).norm(dim=1)


def work(inner: float, stages: Sequence[int]) -> float:
    """Share of the block passes if the inner stages run in this share of the steps."""
    outer = stages[0] + stages[-1]
    return (outer + inner * (sum(stages) - outer)) / sum(stages)


def score_of(judged: judge.Judge, pipeline: T2VPipeline, requests: Sequence[Request], latents: Tensor) -> float:
    videos = pipeline.decode(latents)
    pairs = zip(videos, requests, strict=True)
    return judge.scores([judge.ask(judged, video, one.model.prompt, one.name) for video, one in pairs])["all"]


def family(rule: str) -> str:
    """Points of a family are joined by a line."""
    read = CacheRule.read(rule)
    return ("interval" if read.limit is None else "auto") + ("+taylor" if read.forecast else "")


def crossing(points: Sequence[Point], x: str, y: str, at: float) -> float | None:
    """x where the line through the points, sorted, reaches y = at; the logarithm of `distance` is linear. None outside."""

    def value(point: Point, name: str) -> float:
        return math.log(max(getattr(point, name), 1e-9)) if name == "distance" else getattr(point, name)

    wanted = math.log(max(at, 1e-9)) if y == "distance" else at
    ordered = sorted(points, key=lambda point: value(point, y))
    for low, high in zip(ordered[:-1], ordered[1:], strict=True):
        first, last = value(low, y), value(high, y)
        if first <= wanted <= last and last > first:
            found = value(low, x) + (wanted - first) / (last - first) * (value(high, x) - value(low, x))
            return math.exp(found) if x == "distance" else found
    return None


def comparison(points: Sequence[Point]) -> str:
    """Each rule that the network decides against the interval rules with the same forecast."""
    rows = []
    for point in points:
        name = family(point.rule)
        if not name.startswith("auto"):
            continue
        base = [one for one in points if one.rule != OFF and family(one.rule) == name.replace("auto", "interval")]
        speed = crossing(base, "v1_5", "distance", point.distance)
        error = crossing(base, "distance", "v1_5", point.v1_5)
        rows.append(
            [
                point.rule,
                "outside" if speed is None else speed / point.v1_5,
                "outside" if error is None else point.distance / error,
            ]
        )
    return table(
        ["rule", "times as fast at equal distance (v1.5's blocks)", "distance / interval's at equal work"], rows
    )


def report(points: Sequence[Point], model: SampleModelConfig, requests: Sequence[Request], flags) -> str:
    columns = [
        *("rule", "inner stages run in", "block passes", "with v1.5's blocks", "time"),
        *("distance", "worst sample", "judge"),
    ]
    rows = [
        [
            *(point.rule, point.inner, point.blocks, point.v1_5, point.time, point.distance, point.worst),
            "" if point.score is None else round(point.score, 1),
        ]
        for point in points
    ]
    diffusion = model.diffusion
    head = (
        f"{len(requests)} prompts in batches of {flags.batch}, halves {flags.cfg_mode}, "
        f"{diffusion.num_inference_steps} steps of {diffusion.solver}, guidance {diffusion.guidance_scale:g}"
    )
    return f"{head}\n\n{table(columns, rows)}\n\n{comparison(points)}"


def plot(points: Sequence[Point], file: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    judged = any(point.score is not None for point in points)
    figure, panels = plt.subplots(
        1, 2 if judged else 1, figsize=(13 if judged else 7, 5), layout="constrained", squeeze=False
    )
    shown = [point for point in points if point.rule != OFF]
    for index, name in enumerate(dict.fromkeys(family(point.rule) for point in shown)):
        of = sorted((point for point in shown if family(point.rule) == name), key=lambda point: point.v1_5)
        speed = [1 / point.v1_5 for point in of]
        style = "o--" if name.startswith("interval") else "s-"
        panels[0, 0].plot(speed, [max(point.distance, 1e-4) for point in of], style, color=f"C{index}", label=name)
        for point, x in zip(of, speed, strict=True):
            text = point.rule.removesuffix("+taylor").removeprefix("auto:")
            panels[0, 0].annotate(
                text, (x, max(point.distance, 1e-4)), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
        if judged:
            panels[0, 1].plot(speed, [point.score for point in of], style, color=f"C{index}", label=name)
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylabel("distance from the full run")
    if judged:
        panels[0, 1].axhline(points[0].score, color="grey", linewidth=1, label="full run")
        panels[0, 1].set_ylabel("judge, percent")
    for panel in panels.flat:
        panel.set_xlabel("speed: 1 / share of block passes, with v1.5's blocks")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
