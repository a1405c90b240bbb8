"""Bytes of a denoiser's weights on one rank: as they are, in fewer bits, or streamed from the host block by block."""

import dataclasses
import functools
import math

from mindspeed_mm import families
from mindspeed_mm.families.adapters import linears_of
from mindspeed_mm.families.base import DenoiserConfig, Parameter
from mindspeed_mm.families.frozen_base import packings
from mindspeed_mm.planning.job import ITEMSIZE, Job


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """Bytes on one rank. resident: what is always on the device. blocks: the linears of each block, if they are streamed."""

    resident: int
    blocks: tuple[int, ...] = ()

    def on_device(self, places: int | None) -> int:
        """Bytes on the device; each place holds any block. places: of streamed blocks."""
        return self.resident + (places or 0) * max(self.blocks, default=0)

    def moved(self, places: int | None) -> int:
        """Bytes that a forward and backward pass copies from the host: the blocks that are no longer there."""
        count = len(self.blocks)
        return sum(self.blocks[places or 0 :]) + sum(self.blocks[: max(0, count - (places or 0))])


@functools.lru_cache(maxsize=4)  # a plan asks some hundred times, and v1.5 takes 10 ms each time
def parameters_of(denoiser: DenoiserConfig) -> dict[str, Parameter]:
    """Every parameter of a denoiser; not to be changed."""
    return families.of_denoiser(denoiser).parameters(denoiser)


def weights_of(job: Job, tensor: int) -> Weights:
    """The denoiser's weights on one TP rank, without adapters."""
    adapter = job.adapter
    return _weights(job.denoiser, ITEMSIZE[job.dtype], adapter.base_weights, adapter.stream_blocks is not None, tensor)


@functools.lru_cache(maxsize=64)
def _weights(denoiser: DenoiserConfig, item: int, form: str | None, streamed: bool, tensor: int) -> Weights:
    parameters, block_of = parameters_of(denoiser), families.of_denoiser(denoiser).block_of
    linears, packed = linears_of(parameters), packings(parameters, form)
    resident, blocks = 0, {}
    for name, parameter in parameters.items():
        layer, _, kind = name.rpartition(".")
        numbers = math.prod(parameter.shape) // (1 if parameter.dim is None else tensor)
        weight = kind == "weight" and layer in linears
        size = packed[layer].bytes_of(numbers) if weight and layer in packed else numbers * item
        block = block_of(name) if streamed and weight else None
        if block is None:
            resident += size
        else:
            blocks[block] = blocks.get(block, 0) + size
    return Weights(resident, tuple(blocks.values()))
