"""Memory of one rank, by part."""

import dataclasses
import math
from collections.abc import Mapping

from mindspeed_mm import families
from mindspeed_mm.config.optimizer import UPDATE_PART
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.adapters import DOWN, MAGNITUDE, adapter_parameters, settings_of
from mindspeed_mm.families.base import Parameter, Share
from mindspeed_mm.planning.base_weights import parameters_of, weights_of
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
    recompute: str  # one of RECOMPUTE
    recomputed: int = 2**30  # first blocks that it applies to; default: all
    sequence_parallel: bool = True  # where TP is more than 1

    @property
    def cards(self) -> int:
        return self.tensor * self.context * self.data


def parts(job: Job, layout: Layout) -> dict[str, int]:
    """Bytes on one rank: weights, gradients, main weights, moments, average, activations, encoding, frozen networks.

    Clips are encoded before there are activations; "encoding" is what that needs beyond them.

    Gradients are fp32. The distributed optimizer shares main weights, moments and average over DP x CP ranks. In fp32
    the main weights are the weights themselves. With an adapter only its fp32 parameters have the other parts.

    With --optimizer-cpu-offload that state is on the host, and "update" is what its parts on the device need beyond the
    activations.
    """
    trained = trained_numbers(job, layout.tensor)
    weights = weights_of(job, layout.tensor).on_device(job.adapter.stream_blocks)
    if job.adapter.kind is not None:
        weights += trained * _FP32
    kept, state = activations(job, layout), state_bytes(job, layout)
    found = {
        "weights": weights,
        "gradients": trained * _FP32,
        **(dict.fromkeys(state, 0) if job.cpu_offload else state),
        "activations": kept,
        "encoding": max(0, job.micro_batch * job.encode_bytes - kept),
        "frozen": job.frozen_bytes,
    }
    if job.cpu_offload:
        found["update"] = max(0, _update_bytes(job, layout, sum(state.values())) - kept)
    return found


def state_bytes(job: Job, layout: Layout) -> dict[str, int]:
    """Bytes of one rank's optimizer state by part, wherever it is."""
    trained = trained_numbers(job, layout.tensor)
    owned = trained // (layout.data * layout.context) if job.distributed_optimizer else trained
    fp32 = job.dtype == "fp32" or job.adapter.kind is not None
    return {
        "main weights": 0 if fp32 else owned * _FP32,
        "moments": 2 * owned * _FP32,
        "average": owned * _FP32 if job.ema else 0,
    }


def _update_bytes(job: Job, layout: Layout, state: int) -> int:
    """Bytes of the two parts of the state that an update holds on the device. state: all of it."""
    trained = parameters_of(job.denoiser) if job.adapter.kind is None else adapters_of(job)
    largest = max(numbers_of({name: parameter}, layout.tensor) for name, parameter in trained.items())
    share = max(UPDATE_PART, largest) / trained_numbers(job, layout.tensor)
    ranks = layout.data * layout.context if job.distributed_optimizer else 1
    return min(state, math.ceil(2 * share * state * ranks))


def rank_parameters(job: Job, tensor: int) -> int:
    """Numbers in the denoiser's weights on one TP rank."""
    return numbers_of(parameters_of(job.denoiser), tensor)


def trained_numbers(job: Job, tensor: int) -> int:
    """Numbers on one TP rank that are trained: an adapter's alone, or all."""
    return rank_parameters(job, tensor) if job.adapter.kind is None else numbers_of(adapters_of(job), tensor)


def adapters_of(job: Job) -> dict[str, Parameter]:
    """Parameters of the job's adapters; empty without."""
    if job.adapter.kind is None:
        return {}
    parameters = parameters_of(job.denoiser)
    return adapter_parameters(parameters, settings_of(job.adapter, parameters))


def numbers_of(parameters: Mapping[str, Parameter], tensor: int) -> int:
    """Numbers in these parameters on one TP rank."""
    return sum(
        math.prod(parameter.shape) // (1 if parameter.dim is None else tensor) for parameter in parameters.values()
    )


def activations(job: Job, layout: Layout) -> int:
    """Peak of a micro-batch's forward and backward pass. Raises ConfigError for a network without formulas."""
    family = families.of_denoiser(job.denoiser)
    if family.training_bytes is None:
        raise ConfigError(
            f"model_id {job.denoiser.model_id!r}: its family has no formulas of memory, so it cannot be planned"
        )
    return family.training_bytes(job.denoiser, share_of(job, layout)) + _kept_by_adapters(job, layout)


def share_of(job: Job, layout: Layout) -> Share:
    """One rank's share of a micro-batch."""
    return Share(
        batch=job.micro_batch,
        video_tokens=job.video_tokens,
        text_tokens=job.text_tokens,
        itemsize=ITEMSIZE[job.dtype],
        tensor=layout.tensor,
        context=layout.context,
        sequence_parallel=layout.sequence_parallel and layout.tensor > 1,
        recompute_blocks=layout.recomputed if layout.recompute == "blocks" else 0,
        offloaded_blocks=job.offloaded_blocks,
        recompute_feed_forwards=layout.recomputed if layout.recompute == "feed-forwards" else 0,
        frozen=job.adapter.kind is not None,
    )


def _kept_by_adapters(job: Job, layout: Layout) -> int:
    """What adapters keep beside the inputs of their linears, which a training of the whole network keeps as well.

    LoRA keeps A x; DoRA also two tensors as wide as the linear's output; dropout its result and a mask of bytes. Half of
    the linears are counted with the tokens of the video, half with those of the text. Recomputed blocks keep it one at a
    time.
    """
    if job.adapter.kind is None:
        return 0
    block_of = families.of_denoiser(job.denoiser).block_of
    kept: dict[str | None, int] = {}  # bytes for each token, by block
    for name, parameter in adapters_of(job).items():
        if parameter.kind in ("attention", "feed_forward"):
            share = 1 if parameter.dim is None else layout.tensor
            wide, masks = 0, 0
            if name.endswith(DOWN):
                masks = parameter.shape[1] // share if job.adapter.dropout else 0
                wide = job.adapter.rank + masks
            elif name.endswith(MAGNITUDE):
                wide = 2 * parameter.shape[0] // share
            block = block_of(name)
            kept[block] = kept.get(block, 0) + wide * ITEMSIZE[job.dtype] + masks
    sizes = list(kept.values())
    recomputed = layout.recomputed if layout.recompute == "blocks" else 0
    tokens = job.micro_batch * (job.video_tokens + job.text_tokens) // 2 // layout.context
    return tokens * (sum(sizes[recomputed:]) + max(sizes[:recomputed], default=0))
