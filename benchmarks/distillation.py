"""Students beside their teacher on the same noise: forward passes, a judge's score, distance from the teacher's full run.

    python benchmarks/distillation.py --mm-model sample.json --judge examples/quickstart/score.py \\
        --rows 20:4 4:4 4:1 2:1 student4.pt student4.pt:2:1

A row is STEPS:GUIDANCE for the weights of the JSON, PATH for weights that say how they sample, or PATH:STEPS:GUIDANCE. The
full run is 30 steps of Heun with the JSON's weights and guidance; the last row of the table is the judge's score of chance.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, too

from common import table

from mindspeed_mm.config.sample import SampleModelConfig, SamplingOptions
from mindspeed_mm.config.solvers import SOLVERS
from mindspeed_mm.diffusion import schedule
from mindspeed_mm.evaluation import judge
from mindspeed_mm.platforms.select import select
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.prompt_files import read_prompts
from mindspeed_mm.sampling.requests import Request
from mindspeed_mm.schema import build, read_json
from mindspeed_mm.weights.distilled import distilled_of

FULL = {"num_inference_steps": 30, "solver": "heun"}
_SHUFFLES = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Weights (None: the JSON's) with the keys of the diffusion block that the row changes."""

    name: str
    weights: str | None
    changes: dict[str, object]

    @classmethod
    def read(cls, text: str) -> "Row":
        path, *numbers = text.split(":")
        if path.isdigit():
            path, numbers = "", [path, *numbers]
        changes: dict[str, object] = {}
        if numbers:
            changes = {"num_inference_steps": int(numbers[0]), "guidance_scale": float(numbers[1]), "solver": "euler"}
        elif path:
            record = distilled_of(path)
            if record is None:
                raise SystemExit(f"{path}: does not say how it samples; give {path}:STEPS:GUIDANCE")
            changes = record.defaults()
        return cls(text, path or None, changes)


def main() -> None:
    flags = parse()
    select(flags.device).prepare()
    model = build(SampleModelConfig, read_json(flags.mm_model))
    judged = judge.load(flags.judge) if flags.judge else None
    rows = [Row("full run", None, dict(FULL)), *map(Row.read, flags.rows)]
    full, lines, records, chance = None, [], [], {}
    for row in tqdm(rows, desc="rows", disable=None):
        latents, videos, requests, passes = sampled(row, model, flags)
        full = latents if full is None else full
        found: dict[str, object] = {"row": row.name, "forward passes": passes, "distance": distance(latents, full)}
        if judged is not None:
            found |= scores(judged, videos, [one.model.prompt for one in requests])
        records.append(found)
        lines.append(list(found.values()))
        tqdm.write(json.dumps(found), file=sys.stderr)
        if row.name == "full run" and judged is not None:
            chance = chance_of(judged, videos, [one.model.prompt for one in requests])
    if judged is not None:
        lines.append(["chance (prompts shuffled)", "", "", *chance.values()])
    print(table(list(records[0]), lines))
    if flags.json:
        Path(flags.json).write_text(json.dumps(records, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mm-model", metavar="JSON", required=True, help="an inference JSON with the teacher's weights"
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", required=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "npu"))
    parser.add_argument("--prompts", type=int, default=24, help="prompts of the JSON's file that are sampled")
    parser.add_argument("--samples", type=int, default=4, help="videos of each prompt")
    parser.add_argument("--batch", type=int, default=12, help="samples together")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--judge", metavar="PLACE", help="as of mindspeed-mm evaluate; decodes every video")
    parser.add_argument("--json", metavar="FILE", help="write the rows to this file")
    return parser.parse_args()


def sampled(row: Row, model: SampleModelConfig, flags) -> tuple[Tensor, list, list[Request], int]:
    """Latents, videos (with a judge), requests, and forward passes of the denoiser for each sample."""
    diffusion = dataclasses.replace(model.diffusion, **row.changes)
    if row.weights is not None:
        model = dataclasses.replace(model, predictor=dataclasses.replace(model.predictor, from_pretrained=row.weights))
    model = dataclasses.replace(model, diffusion=diffusion)
    pipeline = T2VPipeline.from_config(model, device=flags.device, options=SamplingOptions(guidance_mode="batched"))
    lines = read_prompts(model.prompt)[: flags.prompts]
    requests = [
        Request(model.for_prompt(line), flags.seed, (number, sample))
        for number, line in enumerate(lines)
        for sample in range(flags.samples)
    ]
    batches = [requests[first : first + flags.batch] for first in range(0, len(requests), flags.batch)]
    latents = [pipeline.denoise(batch, progress=False) for batch in batches]
    videos = [video for part in latents for video in pipeline.decode(part)] if flags.judge else []
    steps, of_one = len(schedule.grid(diffusion, model.latent_grid)) - 1, SOLVERS[diffusion.solver].evaluations
    evaluations = steps * of_one - (of_one - 1)  # the last step takes one
    return torch.cat(latents), videos, requests, evaluations * (2 if diffusion.guidance_scale > 1 else 1)


def distance(latents: Tensor, full: Tensor) -> float:
    """Relative rms distance from the full run, the mean over samples."""
    each = (latents - full).flatten(1).norm(dim=1) / full.flatten(1).norm(dim=1)
    return round(each.mean().item(), 3)


def scores(judged: judge.Judge, videos: Sequence, prompts: Sequence[str]) -> dict[str, float | str]:
    """The judge's mean in percent, of seen and unseen prompts apart if it names them so, and its lowest question."""
    answers = [judge.ask(judged, video, prompt, prompt) for video, prompt in zip(videos, prompts, strict=True)]
    found = judge.scores(answers)
    found.pop("all")
    groups = {
        "judge, seen": [value for name, value in found.items() if not name.startswith("unseen ")],
        "judge, unseen": [value for name, value in found.items() if name.startswith("unseen ")],
    }
    means = {name: round(statistics.mean(values), 1) for name, values in groups.items() if values}
    worst = min(found, key=lambda name: found[name])
    return {**means, "worst question": f"{worst} {found[worst]:.1f}"}


def chance_of(judged: judge.Judge, videos: Sequence, prompts: Sequence[str]) -> dict[str, object]:
    """Mean scores of the full run's videos for each other's prompts."""
    rounds = [scores(judged, videos, order) for order in judge.shuffles(prompts, _SHUFFLES, 0)]
    means = {name: [value for one in rounds if isinstance(value := one[name], float)] for name in rounds[0]}
    return {name: round(statistics.mean(values), 1) if values else "" for name, values in means.items()}


if __name__ == "__main__":
    main()
