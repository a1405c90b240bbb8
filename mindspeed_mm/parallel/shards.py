"""Brings the shards of the data ranks together for checkpoints: whole parameters by name, one at a time.

Files hold whole tensors by name, not Megatron's flat buffers. So they are valid at any number of data ranks, with or
without the distributed optimizer, and `reshard` can split them for another TP size.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_mm.parallel.context import joined
from mindspeed_mm.parallel.engine import MainShard
from mindspeed_mm.parallel.megatron import parallel_state


def gather(shards: list[MainShard], values: list[Tensor], names: Sequence[str]) -> dict[str, Tensor] | None:
    """Whole fp32 CPU tensors by parameter name on the first rank of each data group, None on the others; collective.

    For the arguments see `stream`.
    """
    whole = {name: tensor.clone() for _, name, tensor in stream(shards, {"": values}, names)}
    return whole if _group().rank() == 0 else None


def stream(
    shards: list[MainShard], groups: Mapping[str, list[Tensor]], names: Sequence[str]
) -> Iterator[tuple[str, str, Tensor]]:
    """Yields (group, parameter's name, whole fp32 CPU tensor) on the first rank of each data group, nothing on the others;
    collective: every rank must exhaust it. A tensor is valid until the next one.

    groups: one tensor of the same size for each of this rank's shards. names: of all parameters, in the network's order.
    """
    group = _group()
    first = dist.get_global_rank(group, 0)
    mine = [(shard.name, shard.start, shard.end, tuple(shard.shape)) for shard in shards]
    everyone: list | None = [None] * group.size() if group.rank() == 0 else None
    dist.gather_object(mine, everyone, group=group, group_dst=0)
    owners = _owners(everyone or [])
    with _memory_of_all(group):
        buffer = torch.empty(max((math.prod(shape) for shape, _ in owners.values()), default=0))
    for key, values in groups.items():
        by_name = {shard.name: value for shard, value in zip(shards, values, strict=True)}
        for name in names:
            if everyone is None:
                if name in by_name:
                    dist.send(_flat(by_name[name]), first, group=group)
            elif name in owners:
                shape, pieces = owners[name]
                whole = buffer[: math.prod(shape)]
                for rank, start, end in pieces:
                    if rank == 0:
                        whole[start:end].copy_(by_name[name].detach().reshape(-1))
                    else:
                        dist.recv(whole[start:end], dist.get_global_rank(group, rank), group=group)
                yield key, name, whole.view(shape)


def _group() -> dist.ProcessGroup:
    return joined(parallel_state.get_data_parallel_group(with_context_parallel=True))


def _owners(everyone: list[list[tuple]]) -> dict[str, tuple[tuple[int, ...], list[tuple[int, int, int]]]]:
    """Shape of each parameter, and its pieces (rank, start, end)."""
    found: dict[str, tuple[tuple[int, ...], list[tuple[int, int, int]]]] = {}
    for rank, pieces in enumerate(everyone):
        for name, start, end, shape in pieces:
            found.setdefault(name, (shape, []))[1].append((rank, start, end))
    return found


def _flat(value: Tensor) -> Tensor:
    return value.detach().reshape(-1).to("cpu", torch.float32)


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
