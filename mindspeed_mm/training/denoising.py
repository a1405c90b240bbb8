"""The denoiser's objective: frozen encoders make latents and text features, flow matching makes the loss."""

import math
from collections.abc import Callable
from typing import Any

from mindspeed_mm import families
from mindspeed_mm.training.encoder_sharing import SharedEncoders
from mindspeed_mm.training.encoders import Encoded, FrozenEncoders
from mindspeed_mm.training.metrics import Work
from mindspeed_mm.training.step import Loss
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.types import Batch


class Denoising:
    """Encodes a micro-batch and asks the task for its loss."""

    def __init__(self, encoders: FrozenEncoders | SharedEncoders, task: FlowMatchingTask):
        self.encoders = encoders
        self.task = task
        self.family = families.of_denoiser(task.denoiser)

    def __call__(self, network: Callable[..., Any], batch: Batch) -> Loss:
        sample = self.encoders(batch)
        return Loss(self.task.loss(network, sample), self._work(sample), sample.paths)

    def _work(self, sample: Encoded) -> Work:
        batch, _, frames, height, width = sample.latents.shape
        extent = self.family.extent(self.task.denoiser, (frames, height, width))
        # Tokens that are padding in all samples are not computed; counting them would raise the MFU.
        text_tokens = int(sample.conditions.text.keep.any(0).sum())
        flops = self.family.forward_flops(self.task.denoiser, extent, text_tokens)
        passes = 3 + self.task.frozen_passes  # the backward pass takes twice as many
        return Work(samples=batch, tokens=batch * math.prod(extent), flops=batch * passes * flops)
