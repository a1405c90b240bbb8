"""Reads weights of a torch_dist checkpoint (see `torch_dist.py`) memory-mapped, without process group or
megatron-core.

The index, `.metadata`, is a pickle of torch.distributed.checkpoint; it states where each part of each tensor lies.
That library would run code in the pickle, so this file reads it. Each part in a `.distcp` file is a small file of
torch.save and is read like any other (`torch_reader.py`).
"""

import dataclasses
import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, raw, torch_reader, torch_state, trusted
from mindspeed_mm.files.layout import STATE_FILE

INDEX = ".metadata"
# Plain records; creating one runs no code.
_CLASSES = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    ),
    "torch.distributed.checkpoint.planner": ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"),
}

Places = dict[tuple[str, tuple[int, ...]], _StorageInfo]  # (name, offsets in the whole tensor) -> place in the files


def read(
    directory: Path, groups: Mapping[str, str]
) -> tuple[dict[str, list[dict[str, Tensor]]], list[Path], list[torch_reader.Record], dict]:
    """Tensors in the mapped files, these files, the records that hold the tensors, and the plain values beside them.

    groups: prefix of the stored names -> group of the tensors. Each group is a list with one dict per TP rank that
    wrote it; a tensor that is not split is in all of them.
    """
    integrity.Proof([directory / INDEX]).check_all()
    index = _index(directory / INDEX)
    places = {(key.fqn, tuple(key.offset or ())): place for key, place in index.storage_data.items()}
    reader = _Reader(directory, places)
    found: dict[str, dict[str, list[Tensor]]] = {}
    for stored, facts in index.state_dict_metadata.items():
        prefix, _, name = stored.partition(".")
        if prefix in groups and isinstance(facts, TensorStorageMetadata):
            found.setdefault(groups[prefix], {})[name] = reader.parts(stored, facts)
    if not found:
        raise CheckpointError(f"{directory}: holds no tensors under {' or '.join(groups)}")
    shards = {group: _per_rank(tensors, directory) for group, tensors in found.items()}
    return shards, sorted(reader.opened), reader.records, torch_state.load(directory / STATE_FILE)


class _Reader:
    """Tensors of one directory. `opened`: mapped files. `records`: records that hold the tensors."""

    def __init__(self, directory: Path, places: Places):
        self.directory = directory
        self.places = places
        self.opened: dict[Path, torch.UntypedStorage] = {}
        self.records: list[torch_reader.Record] = []

    def parts(self, stored: str, facts: TensorStorageMetadata) -> list[Tensor]:
        """The parts of one tensor, in order along the split dimension; together they form the whole tensor."""
        chunks = sorted(facts.chunks, key=lambda chunk: tuple(chunk.offsets))
        _check_cover(self.directory, stored, tuple(facts.size), chunks)
        return [self._part(stored, chunk, facts.properties.dtype) for chunk in chunks]

    def _part(self, stored: str, chunk: ChunkStorageMetadata, dtype: torch.dtype) -> Tensor:
        """A tensor that torch.save wrote into a part of a larger file."""
        place = self.places.get((stored, tuple(chunk.offsets)))
        if place is None:
            raise CheckpointError(f"{self.directory}: the part of {stored} at {list(chunk.offsets)} is in no file")
        path = self.directory / Path(place.relative_path).name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; the index says that {stored} is in it")
        size, end = path.stat().st_size, place.offset + place.length
        if place.offset < 0 or place.length < 1 or end > size:
            raise CheckpointError(f"{path}: truncated: {stored} ends at byte {end} of {size}")
        if path not in self.opened:
            self.opened[path] = raw.mapped(path)
        try:
            tensor, found = torch_reader.read_part(path, self.opened[path], place.offset, place.length)
        except CheckpointError as error:
            raise CheckpointError(f"{stored} cannot be read: {error}") from None
        if not isinstance(tensor, Tensor) or (tuple(tensor.shape), tensor.dtype) != (tuple(chunk.sizes), dtype):
            what = f"{list(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{path}: {stored} is {what}; the index says {list(chunk.sizes)} {dtype}")
        self.records += [dataclasses.replace(record, tensor=stored) for record in found]
        return tensor


def _check_cover(directory: Path, stored: str, size: tuple[int, ...], chunks: list[ChunkStorageMetadata]) -> None:
    """Raises CheckpointError unless the parts lie side by side along one dimension and cover the whole tensor."""
    sizes = [tuple(chunk.sizes) for chunk in chunks]
    split = [axis for axis in range(len(size)) if any(part[axis : axis + 1] != size[axis : axis + 1] for part in sizes)]
    axis = split[0] if split else 0
    at = 0
    for chunk, part in zip(chunks, sizes, strict=True):
        offsets = [at if place == axis and split else 0 for place in range(len(size))]
        same = len(part) == len(size) and all(part[place] == size[place] for place in range(len(size)) if place != axis)
        if list(chunk.offsets) != offsets or not same:
            raise CheckpointError(
                f"{directory}: the parts of {stored} {list(size)} overlap, or leave a hole at {offsets}"
            )
        at += part[axis] if part else 1
    if not chunks or (split and at != size[axis]) or (not split and len(chunks) != 1):
        raise CheckpointError(f"{directory}: the parts of {stored} {list(size)} are not the whole of it")


def _per_rank(tensors: dict[str, list[Tensor]], directory: Path) -> list[dict[str, Tensor]]:
    count = max(map(len, tensors.values()))
    for name, parts in tensors.items():
        if len(parts) not in (1, count):
            raise CheckpointError(f"{directory}: {name} is in {len(parts)} parts, other tensors are in {count}")
    return [{name: parts[rank % len(parts)] for name, parts in tensors.items()} for rank in range(count)]


def _index(path: Path) -> Metadata:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; without it nothing in the directory can be found")
    pickled = path.read_bytes()
    index = None
    try:
        torch_reader.check_opcodes(pickled)
        index = _IndexUnpickler(io.BytesIO(pickled)).load()
        reason = _misfit(index)
    except Exception as error:  # damaged or hostile bytes raise any kind of error in the unpickler
        reason = " ".join(str(error).split())[:300] or type(error).__name__
    if reason is not None or not isinstance(index, Metadata):
        raise CheckpointError(f"{path}: refused or damaged ({reason})")
    return index


def _misfit(index: object) -> str | None:
    """Reason why an unpickled value is not an index, or None; the pickle may have put anything into its fields."""
    if not isinstance(index, Metadata):
        return f"it is a {type(index).__name__}"
    for name, facts in index.state_dict_metadata.items():
        if not isinstance(name, str):
            return f"{name!r} is no name"
        if isinstance(facts, TensorStorageMetadata):
            sizes = [facts.size, *(size for chunk in facts.chunks for size in (chunk.offsets, chunk.sizes))]
            numbers_are_fine = all(type(number) is int and number >= 0 for size in sizes for number in size)
            if not numbers_are_fine or not isinstance(facts.properties.dtype, torch.dtype):
                return f"its entry {name!r} does not describe a tensor"
    for key, place in index.storage_data.items():
        if not isinstance(key, MetadataIndex) or not isinstance(place, _StorageInfo):
            return f"it does not say where {key!r} is"
        if not isinstance(place.relative_path, str) or not all(type(number) is int for number in key.offset or ()):
            return f"{key!r} is in {place.relative_path!r}"
        if type(place.offset) is not int or type(place.length) is not int:
            return f"{key!r} is at {place.offset!r}"
        if place.transform_descriptors:
            return f"{key!r} is compressed"
    return None


class _IndexUnpickler(pickle.Unpickler):
    """Creates the records of an index and nothing else."""

    def find_class(self, module: str, name: str):
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("pathlib", "PosixPath"):  # path where the checkpoint was written
            return trusted.Inert
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index needs")
