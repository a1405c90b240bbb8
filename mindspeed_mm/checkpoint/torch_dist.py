"""`--ckpt-format torch_dist`: the format of megatron-core's dist_checkpointing, whose files load at any TP and DP size.

Every rank writes one file with its part of the tensors (`shares.py`), one tensor at a time. Then the first rank writes the index,
`.metadata`, which says where each part of each tensor lies. The files are those of torch.distributed.checkpoint; its own `save`
exchanges plans between all ranks, in collectives with a time limit. The rest of a run's state is in `state.pt` beside them.
`torch_dist_reader.py` reads all of this, since megatron-core and torch would run code from their pickles.
"""

import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from mindspeed_mm import atomic
from mindspeed_mm.checkpoint.shares import Part
from mindspeed_mm.checkpoint.store import Writing
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, torch_dist_reader, torch_state
from mindspeed_mm.files.layout import DIST_FILE, STATE_FILE
from mindspeed_mm.files.pieces import check_cover
from mindspeed_mm.files.reshard import DimOf, Weights
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.meeting import meet

# What megatron-core asks of a directory beside torch's files.
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_COMMON_FILE = "common.pt"  # of megatron-core, for values that are no tensors; empty here

# Name, shape of the whole, dtype, offsets and sizes of a part, and the first byte and the length in its file; as JSON holds it.
Entry = tuple[str, list[int], str, list[int], list[int], int, int]


def prepare(parts: list[Part], common: dict, directory: Path, parallel: ParallelContext) -> Writing:
    """Prepares writing this rank's parts, and on the first rank the common values.

    The parts may lie on a device; each is copied when it is written.
    """
    path, entries, beat = directory / f"__{parallel.rank}_0.distcp", [], parallel.pulse.beat

    def write() -> integrity.Checksums:
        if parts:
            entries.extend(_write(parts, path, beat))
        if parallel.is_first:
            torch_state.save(common, directory / STATE_FILE, beat)
        return integrity.measure([path] if parts else [], directory, beat)

    def decide(everyones: list[list[Entry]]) -> str | None:
        try:
            _write_index(everyones, directory)
        except Exception as error:  # the other ranks wait for an answer
            return f"its index: {type(error).__name__}: {error}"
        return None

    def finish() -> integrity.Checksums:
        failure = meet("writing the index", parallel, entries, decide)
        if failure is not None:
            raise CheckpointError(failure)
        if not parallel.is_first:
            return {}
        return integrity.measure([path for path in sorted(directory.iterdir()) if path.suffix != ".distcp"], directory)

    return Writing(write, finish)


def _write(parts: list[Part], path: Path, beat: Callable[[str], None]) -> Iterable[Entry]:
    """Writes parts one behind another, each as a small file of torch.save."""
    with atomic.replacing(path, beat) as file:
        for part in parts:
            begin, tensor = file.tell(), _alone(part.tensor)
            torch.save(tensor, file)
            dtype = str(tensor.dtype).removeprefix("torch.")
            sizes = list(tensor.shape)
            yield part.name, list(part.shape), dtype, list(part.offsets), sizes, begin, file.tell() - begin


def _alone(tensor: Tensor) -> Tensor:
    """The tensor on the CPU with a storage of its own, since torch.save writes whole storages."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _write_index(everyones: list[list[Entry]], directory: Path) -> None:
    """Writes what makes the ranks' files a checkpoint. everyones: by rank. Raises CheckpointError if parts are missing."""
    tensors: dict[str, TensorStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for rank, entries in enumerate(everyones):
        for name, shape, dtype, offsets, sizes, begin, length in entries:
            properties = TensorProperties(dtype=getattr(torch, dtype))
            facts = tensors.setdefault(name, TensorStorageMetadata(properties, torch.Size(shape), []))
            key = MetadataIndex(name, torch.Size(offsets), len(facts.chunks))
            facts.chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            places[key] = _StorageInfo(f"__{rank}_0.distcp", begin, length)
    for name, facts in tensors.items():
        check_cover(str(directory), name, facts.size, [(chunk.offsets, chunk.sizes) for chunk in facts.chunks])
    with atomic.replacing(directory / torch_dist_reader.INDEX) as file:
        pickle.dump(Metadata(dict(tensors), None, places), file)
    with atomic.replacing(directory / _COMMON_FILE) as file:
        torch.save({}, file)
    atomic.write_text(directory / DIST_FILE, json.dumps(_FORMAT))


def opened(directory: Path, prefixes: Iterable[str], dim_of: DimOf) -> dict[str, Weights]:
    """The tensors stored under each prefix, by name; read when they are used. A prefix that is missing has no tensors.

    dim_of: the dimension that is split over TP. `choice.choose` has already compared the files with the checkpoint's record.
    """
    prefixes = list(prefixes)
    groups, files, _ = torch_dist_reader.read(
        directory, {prefix: prefix for prefix in prefixes}, record_is_checked=True
    )
    return {prefix: Weights([groups.get(prefix, {})], dim_of, str(directory), files) for prefix in prefixes}
