"""A sampling job: all prompts of a file, shared over the data ranks, one file each."""

import os
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.config.sample import SampleConfig, SampleModelConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.prompts import read_prompts
from mindspeed_mm.sampling.writer import write_image, write_video

_log = logs.get(__name__)


def run(config: SampleConfig, platform: Platform, parallel: ParallelContext) -> list[Path]:
    """Sample every prompt; returns the files that this rank wrote."""
    model = config.model
    prompts = read_prompts(model.prompt)
    jobs = [(index, k) for index in range(len(prompts)) for k in range(model.num_samples_per_prompt)]
    _check_fps(model)
    pipeline = T2VPipeline.from_config(
        model,
        device=platform.device(int(os.environ.get("LOCAL_RANK", "0"))),
        parallel=parallel,
        load=config.load,
        ema=config.use_ema,
    )
    batches = [jobs[at : at + model.micro_batch_size] for at in range(0, len(jobs), model.micro_batch_size)]
    written = []
    for number, batch in enumerate(batches):
        if number % parallel.data_size != parallel.data_rank:
            continue
        texts = [pipeline.compose(prompts[index]) for index, _ in batch]
        if parallel.is_first:
            _log.info(f"batch {number + 1} of {len(batches)}: {prompts[batch[0][0]][:80]!r}")
        videos = pipeline.sample(texts, pipeline.noise(config.seed, batch), progress=parallel.is_first)
        if parallel.tensor_rank == 0 and parallel.context_rank == 0:
            written += [_write(model, job, frames) for job, frames in zip(batch, videos, strict=True)]
    return written


def _write(model: SampleModelConfig, job: tuple[int, int], frames) -> Path:
    index, k = job
    kind, suffix = ("image", "png") if frames.shape[0] == 1 else ("video", "mp4")
    of_several = f"_i{k:06d}" if model.num_samples_per_prompt > 1 else ""
    path = Path(model.save_path) / f"{kind}_{index:06d}{of_several}.{suffix}"
    if kind == "image":
        write_image(frames, path)
    else:
        write_video(frames, path, model.fps // model.frame_interval)
    _log.info(f"wrote {path}")
    return path


def _check_fps(model: SampleModelConfig) -> None:
    if model.fps < model.frame_interval:
        raise ConfigError(f"fps {model.fps} with frame_interval {model.frame_interval}: less than one frame a second")
