"""A training checkpoint as a directory: all of it appears at once, and the tracker moves to it last."""

import shutil
from pathlib import Path

import torch.distributed as dist

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import files, layout
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.parallel.context import ParallelContext

_log = logs.get(__name__)


def write(root: Path, iteration: int, model: dict | None, optimizer: dict | None, parallel: ParallelContext) -> Path:
    """Save a checkpoint; collective. The first data rank of each TP rank gives `model` (and `optimizer`), others None.

    Everything is written under a temporary name; a crash leaves the previous checkpoint as the latest.
    """
    final = layout.iteration_directory(root, iteration)
    building = final.with_name(final.name + ".tmp")
    if parallel.is_first:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    dist.barrier()
    if model is not None:
        directory = layout.rank_directory(building, parallel.tensor_rank)
        directory.mkdir(parents=True, exist_ok=True)
        files.save(model, directory / layout.MODEL_FILE)
        if optimizer is not None:
            files.save(optimizer, directory / layout.OPTIMIZER_FILE)
        files.flush_directory(directory)
    dist.barrier()
    if parallel.is_first:
        if final.exists():  # a run that was resumed from before this iteration writes it again
            shutil.rmtree(final)
        building.rename(final)
        files.flush_directory(root)
        files.write_text(str(iteration), root / layout.TRACKER)
    dist.barrier()
    return final


def read(root: Path, parallel: ParallelContext) -> tuple[dict, Path | None]:
    """This TP rank's model file of the latest checkpoint, and the path of its optimizer file if there is one."""
    location = layout.find(root)
    shards = layout.rank_files(location.directory)
    if len(shards) != parallel.tensor_size:
        raise CheckpointError(
            f"{location.directory}: holds {len(shards)} TP shards, this run has --tensor-model-parallel-size "
            f"{parallel.tensor_size}; use the same, or merge the weights and start from predictor.from_pretrained"
        )
    path = shards[parallel.tensor_rank]
    model = files.load(path)
    optimizer = path.with_name(layout.OPTIMIZER_FILE)
    return model, optimizer if optimizer.is_file() else None
