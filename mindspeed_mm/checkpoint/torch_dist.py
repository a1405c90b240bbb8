"""`--ckpt-format torch_dist`: megatron-core's dist_checkpointing, whose files load at any TP and DP size.

Tensors are stored whole, by name, as shards over TP. The rest of a run's state is in `state.pt` beside them.
megatron-core writes these files. `torch_dist_reader.py` reads them, since megatron-core and torch would run code from
their pickles.
"""

from pathlib import Path

import torch
from torch import Tensor

from mindspeed_mm.checkpoint.steady import flushed_as_they_grow
from mindspeed_mm.checkpoint.store import Writing
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, torch_dist_reader, torch_state
from mindspeed_mm.files.layout import STATE_FILE
from mindspeed_mm.files.mapped import MappedFiles
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.megatron import ShardedTensor, begin_save
from mindspeed_mm.parallel.partition import full_shape


def prepare(
    tensors: dict[str, tuple[Tensor, int | None]], common: dict, directory: Path, parallel: ParallelContext
) -> Writing:
    """Prepares writing tensors by name (CPU; this TP rank's part, dimension that is split) and common values once;
    collective.

    Data ranks other than the first may pass no tensors.
    """
    request = begin_save(_sharded(tensors, parallel), str(directory))
    assert request is not None, "megatron-core returns one for every asynchronous save"

    def write() -> integrity.Checksums:
        beat, mine = parallel.pulse.beat, f"__{parallel.rank}_*.distcp"
        if request.async_fn is not None:  # this rank has tensors to write
            with flushed_as_they_grow(directory, mine, beat):
                request.async_fn(*request.async_fn_args)
        if parallel.is_first:
            torch_state.save(common, directory / STATE_FILE, beat)
        return integrity.measure(sorted(directory.glob(mine)), directory, beat)

    def finish() -> integrity.Checksums:
        for step in request.finalize_fns:
            step()
        if not parallel.is_first:
            return {}
        return integrity.measure([path for path in sorted(directory.iterdir()) if path.suffix != ".distcp"], directory)

    return Writing(write, finish)


def load_common(directory: Path) -> dict:
    return torch_state.load(directory / STATE_FILE, record_is_checked=True)


def load(wanted: dict[str, tuple[Tensor, int | None]], directory: Path, parallel: ParallelContext) -> dict[str, Tensor]:
    """This TP rank's parts of the named tensors. wanted: gives shape, dtype and the dimension that is split.

    Raises CheckpointError for wrong names, shapes and values. `choice.choose` has already compared the
    files with the checkpoint's record.
    """
    dims = {name: dim for name, (_, dim) in wanted.items()}
    prefixes = {name.partition(".")[0] for name in wanted}
    groups, paths, records, _ = torch_dist_reader.read(directory, {prefix: prefix for prefix in prefixes})
    tensors = [value for shards in groups.values() for shard in shards for value in shard.values()]
    mapped = MappedFiles(paths, tensors, integrity.Proof(paths, records, record_is_checked=True))
    found = {}
    for prefix in prefixes:
        shards = [{f"{prefix}.{name}": value for name, value in shard.items()} for shard in groups.get(prefix, [{}])]
        weights = Weights(shards, dims.get, str(directory), mapped)
        for name in (name for name in wanted if name.startswith(f"{prefix}.")):
            found[name] = _part(weights, name, *wanted[name], parallel)
    return found


def _part(weights: Weights, name: str, target: Tensor, dim: int | None, parallel: ParallelContext) -> Tensor:
    """Fills `target` with this TP rank's part of a tensor."""
    whole = full_shape(target.shape, dim, parallel.tensor_size)
    if name not in weights:
        raise CheckpointError(f"{weights.origin}: does not fit this network: it holds no {name}")
    if weights.shape(name) != whole:
        raise CheckpointError(
            f"{weights.origin}: does not fit this network: {name} is {list(weights.shape(name))}, not {list(whole)}"
        )
    weights.copy_into(target, name, parallel.tensor_rank, parallel.tensor_size)
    return target


def _sharded(tensors: dict[str, tuple[Tensor, int | None]], parallel: ParallelContext) -> dict:
    if not tensors:
        return {}
    data_rank = parallel.data_and_context.rank()
    result = {}
    for name, (tensor, dim) in tensors.items():
        offsets = [] if dim is None else [(dim, parallel.tensor_rank, parallel.tensor_size)]
        replica = (0, parallel.tensor_rank if dim is None else 0, data_rank)
        result[name] = ShardedTensor.from_rank_offsets(name, tensor.contiguous(), *offsets, replica_id=replica)
    return {"tensors": result}


def like(name_to_shape: dict[str, torch.Size], dims: dict[str, int | None], prefix: str, dtype: torch.dtype):
    """Empty CPU tensors to load into, named with `prefix`."""
    return {f"{prefix}{name}": (torch.empty(shape, dtype=dtype), dims[name]) for name, shape in name_to_shape.items()}
