"""Memory of one rank, by part."""

import dataclasses
import math

from mindspeed_mm import families
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.base import Share
from mindspeed_mm.planning.job import ITEMSIZE, Job

GIB = 2**30
_FP32 = 4
# Share of a card's memory that a plan may use: the rest is for the allocator's gaps, kernels' workspaces and the
# communication buffers, which the formulas leave out.
USABLE = 0.92
RECOMPUTE = ("none", "feed-forwards", "blocks")


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How a run is shared over its cards."""

    tensor: int
    context: int
    data: int
    recompute: str  # one of RECOMPUTE, for all blocks

    @property
    def cards(self) -> int:
        return self.tensor * self.context * self.data


def parts(job: Job, layout: Layout) -> dict[str, int]:
    """Bytes on one rank: weights, gradients, main weights, moments, average, activations, frozen networks.

    Gradients are fp32. The distributed optimizer shares main weights, moments and average over DP x CP ranks. In fp32
    the main weights are the weights themselves.
    """
    numbers = rank_parameters(job, layout.tensor)
    owned = numbers // (layout.data * layout.context) if job.distributed_optimizer else numbers
    itemsize = ITEMSIZE[job.dtype]
    return {
        "weights": numbers * itemsize,
        "gradients": numbers * _FP32,
        "main weights": 0 if job.dtype == "fp32" else owned * _FP32,
        "moments": 2 * owned * _FP32,
        "average": owned * _FP32 if job.ema else 0,
        "activations": activations(job, layout),
        "frozen": job.frozen_bytes,
    }


def rank_parameters(job: Job, tensor: int) -> int:
    """Numbers in the denoiser's weights on one TP rank."""
    family = families.of_denoiser(job.denoiser)
    return sum(
        math.prod(parameter.shape) // (1 if parameter.dim is None else tensor)
        for parameter in family.parameters(job.denoiser).values()
    )


def activations(job: Job, layout: Layout) -> int:
    """Peak of a micro-batch's forward and backward pass. Raises ConfigError for a network without formulas."""
    family = families.of_denoiser(job.denoiser)
    if family.training_bytes is None:
        raise ConfigError(
            f"model_id {job.denoiser.model_id!r}: its family has no formulas of memory, so it cannot be planned"
        )
    everything = 2**30  # more blocks than any network has
    share = Share(
        batch=job.micro_batch,
        video_tokens=job.video_tokens,
        text_tokens=job.text_tokens,
        itemsize=ITEMSIZE[job.dtype],
        tensor=layout.tensor,
        context=layout.context,
        sequence_parallel=layout.tensor > 1,
        recompute_blocks=everything if layout.recompute == "blocks" else 0,
        recompute_feed_forwards=everything if layout.recompute == "feed-forwards" else 0,
    )
    return family.training_bytes(job.denoiser, share)
