"""The frozen base of an adapter's run: linears in fewer bits, blocks that live on the host.

A linear gives its weight away and gets a function that returns it (`parallel/linear.py`). Norms, biases and what is
outside the blocks are small and stay as they are.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mindspeed_mm import families
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.families.base import DenoiserConfig
from mindspeed_mm.families.frozen_base import Packing, packings
from mindspeed_mm.ops.packed import Packed, pack, pairs
from mindspeed_mm.parallel import partition
from mindspeed_mm.parallel.linear import LINEARS
from mindspeed_mm.parallel.streaming import BlockStream
from mindspeed_mm.platforms.copies import Copies

_ALIGNED = 256  # bytes, of a tensor's place in its block's memory


def loads_on_host(adapter: AdapterConfig) -> bool:
    """True if a run loads its base on the host, since the device may be too small for it as it is."""
    return adapter.base_weights is not None or adapter.stream_blocks is not None


def hold_base(
    network: Any,
    config: DenoiserConfig,
    adapter: AdapterConfig,
    device: torch.device,
    copies: Copies,
) -> BlockStream | None:
    """Brings a loaded denoiser to the device, its linears held as the adapter's settings say; returns the stream of its
    blocks, if any.

    Call it before adapters are attached.
    """
    packed = packings(families.of_denoiser(config).parameters(config), adapter.base_weights)
    levels = pairs(device)
    stream = None
    if adapter.stream_blocks is not None:
        stream = _to_host(network, packed, adapter.stream_blocks, levels, copies)
    for name, packing in packed.items():
        linear: Any = network.get_submodule(name)
        if linear.held is None:
            weight, linear.weight = linear.weight.detach().to(device), None
            linear.held = pack(weight, packing.form, packing.block, levels)
    network.to(device)
    partition.mark(network, network.partial_gradients())
    return stream


def _to_host(network: Any, packed: Mapping[str, Packing], resident: int, levels: Tensor, copies: Copies) -> BlockStream:
    """Moves the linears of all blocks into memory on the host."""
    blocks = network.blocks()
    packing_of = {network.get_submodule(name): packing for name, packing in packed.items()}
    homes, places = [], []
    for index, block in enumerate(blocks):
        memory, ends = [], 0
        for linear in block.modules():
            if isinstance(linear, LINEARS):
                pieces = []
                for part in _parts(linear, packing_of.get(linear), levels):
                    pieces.append(_Piece(ends, part.dtype, part.shape))
                    memory.append(part)
                    ends += math.ceil(part.nbytes / _ALIGNED) * _ALIGNED
                places.append((linear, index, tuple(pieces)))
        homes.append(copies.home(_joined(memory, ends)))
    stream = BlockStream(homes, resident, levels.device, copies)
    for linear, index, pieces in places:
        linear.held = StreamedWeight(stream, index, pieces, levels)
    return stream


def _parts(linear: Any, packing: Packing | None, levels: Tensor) -> tuple[Tensor, ...]:
    """What is kept of a linear's weight, which the linear gives away."""
    weight, linear.weight = linear.weight.detach(), None
    if packing is None:
        return (weight,)
    packed = pack(weight.to(levels.device), packing.form, packing.block, levels)
    return packed.codes, packed.scales


def _joined(parts: list[Tensor], size: int) -> Tensor:
    """Memory of a block on the host: uint8 [size], each part at the next aligned place."""
    memory, begin = torch.zeros(size, dtype=torch.uint8), 0
    for part in parts:
        memory[begin : begin + part.nbytes].copy_(part.contiguous().view(torch.uint8).flatten())
        begin += math.ceil(part.nbytes / _ALIGNED) * _ALIGNED
    return memory


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor in its block's memory."""

    begin: int
    dtype: torch.dtype
    shape: torch.Size

    def of(self, memory: Tensor) -> Tensor:
        size = math.prod(self.shape) * self.dtype.itemsize
        return memory[self.begin : self.begin + size].view(self.dtype).view(self.shape)


@dataclasses.dataclass(frozen=True, slots=True)
class StreamedWeight:
    """The weight of a linear in a streamed block: a view of the block's memory, or unpacked from it."""

    stream: BlockStream
    block: int
    pieces: tuple[_Piece, ...]  # the weight, or codes and scales of a packed one
    levels: Tensor

    @property
    def numbers(self) -> int:
        return math.prod(self.pieces[0].shape) * (2 if self.pieces[0].dtype == torch.uint8 else 1)

    def __call__(self, dtype: torch.dtype) -> Tensor:
        first, *scales = (piece.of(self.stream.block(self.block)) for piece in self.pieces)
        if not scales:
            return first.to(dtype)
        return Packed(first, scales[0], self.levels if first.dtype == torch.uint8 else None)(dtype)
