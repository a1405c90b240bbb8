"""The denoiser's objective: frozen encoders make latents and text features, flow matching makes the loss."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from mindspeed_mm import families
from mindspeed_mm.families.adapters import is_adapter
from mindspeed_mm.families.base import DenoiserConfig, Share
from mindspeed_mm.parallel.linear import LINEARS
from mindspeed_mm.training.encoder_sharing import SharedEncoders
from mindspeed_mm.training.encoders import Encoded, FrozenEncoders
from mindspeed_mm.training.metrics import Work
from mindspeed_mm.training.step import Loss
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.types import Batch


@dataclasses.dataclass(frozen=True, slots=True)
class TrainedShares:
    """What of a network is trained, as shares of the numbers in its linears.

    own: of them. added: numbers of adapters for each of them.
    """

    own: float = 1.0
    added: float = 0.0

    @classmethod
    def of(cls, network: nn.Module) -> "TrainedShares":
        """The shares of a network whose frozen parameters need no gradients."""
        counts = {"own": 0, "all": 0, "added": 0}
        for name, parameter in network.named_parameters():
            if parameter.dim() != 2:
                continue
            if is_adapter(name):
                counts["added"] += parameter.numel()
                continue
            counts["all"] += parameter.numel()
            counts["own"] += parameter.numel() if parameter.requires_grad else 0
        for module in network.modules():
            if isinstance(module, LINEARS) and module.held is not None:
                counts["all"] += module.held.numbers
        return cls(counts["own"] / max(1, counts["all"]), counts["added"] / max(1, counts["all"]))

    def step_flops(self, denoiser: DenoiserConfig, share: Share, forward: int) -> int:
        """Operations of a forward and backward pass.

        Attention takes three passes, a trained product three, a frozen one two. share: of the whole network. forward:
        operations of its forward pass, of which a family without formulas is taken to have three.
        """
        count = families.of_denoiser(denoiser).training_flops
        if count is None:
            return 3 * forward
        frozen, attention = count(denoiser, dataclasses.replace(share, frozen=True))
        trained, _ = count(denoiser, dataclasses.replace(share, frozen=False))
        products = frozen + self.own * (trained - frozen) + self.added * 1.5 * frozen
        return round(products) + sum(attention.values())


class Denoising:
    """Encodes a micro-batch and asks the task for its loss."""

    def __init__(
        self, encoders: FrozenEncoders | SharedEncoders, task: FlowMatchingTask, trained: TrainedShares | None = None
    ):
        """trained: what of the network is trained; None: all of it."""
        self.encoders = encoders
        self.task = task
        self.family = families.of_denoiser(task.denoiser)
        self.trained = trained or TrainedShares()

    def __call__(self, network: Callable[..., Any], batch: Batch) -> Loss:
        sample = self.encoders(batch)
        return Loss(self.task.loss(network, sample), self._work(sample), sample.paths)

    def _work(self, sample: Encoded) -> Work:
        batch, _, frames, height, width = sample.latents.shape
        extent = self.family.extent(self.task.denoiser, (frames, height, width))
        # Tokens that are padding in all samples are not computed; counting them would raise the MFU.
        text_tokens = int(sample.conditions.text.keep.any(0).sum())
        forward = self.family.forward_flops(self.task.denoiser, extent, text_tokens)
        share = Share(batch=batch, video_tokens=math.prod(extent), text_tokens=text_tokens, itemsize=4)
        flops = self.trained.step_flops(self.task.denoiser, share, batch * forward)
        flops += batch * self.task.frozen_passes * forward
        return Work(samples=batch, tokens=batch * math.prod(extent), flops=flops)
