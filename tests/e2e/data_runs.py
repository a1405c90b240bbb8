"""Whole training runs on ranks of the pool: what the command does, without starting a process for each."""

import json
from pathlib import Path

from mindspeed_mm.config import resolve
from mindspeed_mm.errors import MMError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.training.build import build_extraction, build_trainer


def train(flags: list, ranks: int = 1) -> dict | str:
    """Losses by iteration, with all digits, and the loader's state at the end; or the message of an error of ours."""
    config = resolve.run_config([str(flag) for flag in flags], world_size=ranks)
    launch = config.launch
    parallel = ParallelContext.start("gloo", launch.tensor_size, launch.context_size, launch.sequence_parallel)
    try:
        trainer = build_trainer(config, CpuPlatform(), parallel)
        trainer.fit()
    except MMError as error:
        return str(error)
    lines = (Path(config.checkpoint.save) / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    losses = {step["iteration"]: step["loss"] for step in steps if "loss" in step}
    return {"losses": losses, "state": trainer.state.loader.state_dict()}


def extract(flags: list, videos: bool = True, texts: bool = True) -> tuple | str:
    """What the extraction has done: crops of clips encoded, those that could not be, captions; or an error's message."""
    config = resolve.run_config([str(flag) for flag in flags], world_size=1)
    parallel = ParallelContext.start("gloo")
    try:
        extraction = build_extraction(config, CpuPlatform(), parallel)
        return (*(extraction.videos() if videos else (0, 0)), extraction.texts() if texts else 0)
    except MMError as error:
        return str(error)
