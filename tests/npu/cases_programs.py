"""Whole programs and their parts on simulated NPUs."""

import os
import sys
from pathlib import Path

import torch
from simulation.device import OnHost
from simulation.trace import Trace

from mindspeed_mm import launch
from mindspeed_mm.cli import sampling, training
from mindspeed_mm.config.run import LaunchConfig
from mindspeed_mm.config.sample import PromptConfig
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.requests import Request

TENSOR_PARALLEL = LaunchConfig(device="npu", mindspeed="off", tensor_size=2, sequence_parallel=True)


def program(name: str, flags: list[str]) -> dict[str, int]:
    """Run `train` or `sample` as its script does, with these flags; returns the kernels launched."""
    sys.argv = [f"{name}.py", "--device", "npu", "--mindspeed", "off", *flags]
    with OnHost(launch=True), Trace() as trace:
        {"train": training.train, "sample": sampling.sample}[name]()
    return trace.counts()


def sample(config: Path, prompt: str, seed: int) -> torch.Tensor:
    """A sampled video [1,3,T,H,W] as the decoder gives it, before it is rounded to 8 bits."""
    with OnHost():
        platform, parallel = launch.start(TENSOR_PARALLEL)
        device = platform.device(int(os.environ["LOCAL_RANK"]))
        return video(T2VPipeline.from_config(config, device=device, parallel=parallel), prompt, seed)


def video(pipeline: T2VPipeline, prompt: str, seed: int) -> torch.Tensor:
    with torch.no_grad():
        request = Request(pipeline.config.for_prompt(PromptConfig(prompt=prompt)), seed)
        latents = pipeline.denoise([request], progress=False)
        return pipeline.autoencoder.decode(latents.to(pipeline.autoencoder.dtype)).float().cpu()
