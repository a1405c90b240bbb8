"""`--ckpt-format torch_dist`: megatron-core's dist_checkpointing, whose files any TP and DP size can load.

Tensors are stored whole, by name, as shards over TP. The rest of a run's state is `state.pt` beside them. Its index is a
pickle of torch.distributed.checkpoint: load checkpoints of your own runs only.
"""

from pathlib import Path

import torch
from torch import Tensor

from mindspeed_mm.checkpoint import files, integrity
from mindspeed_mm.checkpoint.layout import STATE_FILE
from mindspeed_mm.checkpoint.store import Writing
from mindspeed_mm.checkpoint.write_behind import flushed_as_they_grow
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.megatron import ShardedTensor, dist_checkpointing, write_in_this_process


def prepare(
    tensors: dict[str, tuple[Tensor, int | None]], common: dict, directory: Path, parallel: ParallelContext
) -> Writing:
    """How to write tensors (CPU; this TP rank's part, dimension that is split) by name, and common values once; collective.

    Data ranks other than the first may give no tensors.
    """
    write_in_this_process()
    request = dist_checkpointing.save(_sharded(tensors, parallel), str(directory), async_sharded_save=True)

    def write() -> integrity.Checksums:
        beat, mine = parallel.pulse.beat, f"__{parallel.rank}_*.distcp"
        if request.async_fn is not None:  # there is something for this rank
            with flushed_as_they_grow(directory, mine, beat):
                request.async_fn(*request.async_fn_args)
        if parallel.is_first:
            files.save(common, directory / STATE_FILE, beat)
        return integrity.measure(sorted(directory.glob(mine)), directory, beat)

    def finish() -> integrity.Checksums:
        for step in request.finalize_fns:
            step()
        if not parallel.is_first:
            return {}
        return integrity.measure([path for path in sorted(directory.iterdir()) if path.suffix != ".distcp"], directory)

    return Writing(write, finish)


def load_common(directory: Path) -> dict:
    return files.load(directory / STATE_FILE)


def load(wanted: dict[str, tuple[Tensor, int | None]], directory: Path, parallel: ParallelContext) -> dict[str, Tensor]:
    """This TP rank's parts of the named tensors; those given say shape and dtype, and are overwritten; collective."""
    try:
        return dist_checkpointing.load(_sharded(wanted, parallel), str(directory))["tensors"]
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{directory}: does not fit this network ({reason})") from None


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
    """Empty CPU tensors to load into, under `prefix`."""
    return {f"{prefix}{name}": (torch.empty(shape, dtype=dtype), dims[name]) for name, shape in name_to_shape.items()}
