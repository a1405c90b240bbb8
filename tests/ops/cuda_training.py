"""A program: the published network's loss and its gradients on CUDA tensors without memory, two clips of unequal texts.

Prints what reached the device, as JSON. Needs `cuda_guard.cpp` preloaded.
"""

import json
from pathlib import Path

import torch
from on_cuda import OnCuda, onto_cuda
from torch._subclasses.fake_tensor import FakeTensorMode

from mindspeed_mm.config.model import DiffusionConfig, TrainModelConfig
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.models.denoiser import Conditions
from mindspeed_mm.ops import cuda
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.schema import build, read_json
from mindspeed_mm.training.denoising import Denoising
from mindspeed_mm.training.encoders import Encoded
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.types import TextFeatures

MODEL = Path(__file__).resolve().parents[2] / "examples/opensoraplan1.5/model_opensoraplan1_5.json"
WORDS, REAL_WORDS = 512, (100, 60)
LATENTS = (32, 16, 72, 128)  # of 121 frames of 576x1024


def main() -> None:
    config = build(TrainModelConfig, read_json(MODEL)).predictor
    cuda.has_kernel = lambda device: True
    parallel, batch = ParallelContext.current(), len(REAL_WORDS)
    network = build_denoiser(
        config, parallel, device="meta", dtype="bf16", seed=None, recompute_feed_forwards=32
    ).train()
    with FakeTensorMode(allow_non_fake_inputs=True), OnCuda() as device:
        onto_cuda(network)
        keep = torch.arange(WORDS)[None] < torch.tensor(REAL_WORDS)[:, None]  # masks are the host's, as in training
        sequence = torch.empty(batch, WORDS, config.caption_channels, device="cuda")
        text = TextFeatures(sequence, keep, torch.empty(batch, config.pooled_projection_dim, device="cuda"))
        sample = Encoded(
            torch.empty(batch, *LATENTS, device="cuda"),
            Conditions(text),
            torch.ones(batch, *LATENTS[1:], dtype=torch.bool),
            tuple((0, place) for place in range(batch)),
            batch * ("clip",),
        )
        task = FlowMatchingTask(DiffusionConfig(), config, 0)
        Denoising(lambda batch: sample, task)(network, None).value.backward()
    missing = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    print(
        json.dumps({"launched": device.launched, "copied": device.copied, "waited": device.waited, "missing": missing})
    )


if __name__ == "__main__":
    main()
