"""Converts optimizer state for checkpoints: shards of the data ranks <-> whole parameters, by name.

Files hold whole tensors by name, not Megatron's flat buffers. So they are valid at any number of data ranks, with or
without the distributed optimizer, and `reshard` can split them for another TP size.
"""

import contextlib

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_mm.parallel.context import joined
from mindspeed_mm.parallel.engine import MainShard
from mindspeed_mm.parallel.megatron import parallel_state


def gather(shards: list[MainShard], values: list[Tensor]) -> dict[str, Tensor] | None:
    """Whole fp32 CPU tensors by parameter name on the first rank of each data group, None on the others; collective.

    values: one tensor of the same size for each of this rank's shards.
    """
    group = joined(parallel_state.get_data_parallel_group(with_context_parallel=True))
    pieces = [(shard.name, shard.start, shard.end, tuple(shard.shape)) for shard in shards]
    everyone: list = [None] * group.size()
    dist.all_gather_object(everyone, pieces, group=group)
    longest = max(sum(end - start for _, start, end, _ in rank) for rank in everyone)
    first, whole, parts, padded = group.rank() == 0, {}, [], torch.empty(0)
    with _memory_of_all(group):
        padded = torch.zeros(longest)
        if first:
            whole = {name: torch.empty(shape) for rank in everyone for name, _, _, shape in rank}
            parts = [torch.empty_like(padded) for _ in everyone]
    at = 0
    for value in values:
        padded[at : at + value.numel()] = value.detach().reshape(-1)
        at += value.numel()
    if group.size() == 1:
        parts = [padded]
    else:
        dist.gather(padded, parts if first else None, dst=dist.get_global_rank(group, 0), group=group)
    return _assemble(whole, everyone, parts) if first else None


@contextlib.contextmanager
def _memory_of_all(group: dist.ProcessGroup):
    """Context for an allocation: raises MemoryError on all ranks if one rank lacks memory. Collective."""
    error = None
    try:
        yield
    except (MemoryError, RuntimeError) as raised:
        if not is_of_memory(raised):
            raise
        error = raised
    missing = torch.tensor(int(error is not None))
    dist.all_reduce(missing, op=dist.ReduceOp.MAX, group=group)
    if missing:
        raise MemoryError(str(error or "another rank has none")) from error


def is_of_memory(error: Exception) -> bool:
    """True if memory was missing; torch has separate errors for the host and the device."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


@torch.no_grad()
def scatter(whole: dict[str, Tensor] | None, shards: list[MainShard], values: list[Tensor]) -> None:
    """The inverse of `gather`: fills each rank's `values` from the first rank's whole tensors; collective."""
    group = joined(parallel_state.get_data_parallel_group(with_context_parallel=True))
    pieces = [(shard.name, shard.start, shard.end, tuple(shard.shape)) for shard in shards]
    if group.size() == 1:
        mine = _cut(whole, pieces)
    else:
        everyone: list = [None] * group.size()
        dist.all_gather_object(everyone, pieces, group=group)
        longest = max(sum(end - start for _, start, end, _ in rank) for rank in everyone)
        parts = None
        if group.rank() == 0:
            cuts = [_cut(whole, rank) for rank in everyone]
            parts = [torch.cat((cut, cut.new_zeros(longest - cut.numel()))) for cut in cuts]
        mine = torch.empty(longest)
        dist.scatter(mine, parts, src=dist.get_global_rank(group, 0), group=group)
    at = 0
    for value in values:
        value.copy_(mine[at : at + value.numel()].view_as(value))
        at += value.numel()


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else torch.empty(0)


def _assemble(whole: dict[str, Tensor], pieces: list[list[tuple]], flats: list[Tensor]) -> dict[str, Tensor]:
    for rank_pieces, flat in zip(pieces, flats, strict=True):
        at = 0
        for name, start, end, _ in rank_pieces:
            whole[name].view(-1)[start:end] = flat[at : at + end - start]
            at += end - start
    return whole


def _cut(whole: dict[str, Tensor] | None, pieces: list[tuple]) -> Tensor:
    assert whole is not None, "the first rank of a group has the whole tensors"
    return _flat([whole[name].float().reshape(-1)[start:end] for name, start, end, _ in pieces])
