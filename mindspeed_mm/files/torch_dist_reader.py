"""Reads weights of a torch_dist checkpoint (see `torch_dist.py`) memory-mapped, without process group or
megatron-core.

The index, `.metadata`, is a pickle of torch.distributed.checkpoint; it states where each part of each tensor lies.
That library would run code in the pickle, so this file reads it. Each part in a `.distcp` file is a small file of
torch.save and is read like any other (`torch_reader.py`).
"""

import dataclasses
import functools
import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, raw, torch_reader, trusted
from mindspeed_mm.files.mapped import MappedFiles
from mindspeed_mm.files.pieces import Pieces, Unopened, check_cover

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


Groups = dict[str, dict[str, Pieces]]


def read(
    directory: Path, groups: Mapping[str, str], record_is_checked: bool = False
) -> tuple[Groups, MappedFiles, list[Path]]:
    """Whole tensors by group and name, their mapped files, and the paths of these.

    groups: prefix of the stored names -> group of the tensors. A file is opened when values in it are used.
    record_is_checked: True if the checkpoint's record has already been compared with the files that it lists.
    """
    integrity.Proof([directory / INDEX]).check_all()
    index = _index(directory / INDEX)
    reader = _Reader(directory, index, record_is_checked)
    found: Groups = {}
    for stored, facts in index.state_dict_metadata.items():
        prefix, _, name = stored.partition(".")
        if prefix in groups and isinstance(facts, TensorStorageMetadata):
            found.setdefault(groups[prefix], {})[name] = reader.tensor(stored, facts)
    if not found:
        raise CheckpointError(f"{directory}: holds no tensors under {' or '.join(groups)}")
    return found, reader.files, reader.paths


class _Reader:
    """Tensors of one directory. files: those that are mapped so far. paths: all that the index names."""

    def __init__(self, directory: Path, index: Metadata, record_is_checked: bool):
        self.directory = directory
        self.places: Places = {(key.fqn, tuple(key.offset or ())): place for key, place in index.storage_data.items()}
        names = {Path(place.relative_path).name for place in self.places.values()}
        there = {path.name for path in directory.iterdir()}
        for name in sorted(names - there):
            raise CheckpointError(f"{directory / name}: missing; the index says that tensors are in it")
        self.paths = [directory / name for name in sorted(names)]
        self.files = MappedFiles([], [], integrity.Proof(self.paths, record_is_checked=record_is_checked))
        self._opened: dict[Path, torch.UntypedStorage] = {}

    def tensor(self, stored: str, facts: TensorStorageMetadata) -> Pieces:
        """One whole tensor, of which nothing is read yet."""
        parts = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in facts.chunks]
        check_cover(str(self.directory), stored, tuple(facts.size), parts)
        dtype, found = facts.properties.dtype, []
        for offsets, sizes in parts:
            place = self.places.get((stored, offsets))
            if place is None:
                raise CheckpointError(f"{self.directory}: the part of {stored} at {list(offsets)} is in no file")
            found.append((offsets, Unopened(sizes, functools.partial(self._part, stored, place, sizes, dtype))))
        return Pieces(facts.size, dtype, found)

    def _part(self, stored: str, place: _StorageInfo, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor that torch.save wrote into a part of a larger file."""
        path = self.directory / Path(place.relative_path).name
        is_new = path not in self._opened
        if is_new:
            self._opened[path] = raw.mapped(path)
        mapped, end = self._opened[path], place.offset + place.length
        if place.offset < 0 or place.length < 1 or end > len(mapped):
            raise CheckpointError(f"{path}: truncated: {stored} ends at byte {end} of {len(mapped)}")
        try:
            tensor, found = torch_reader.read_part(path, mapped, place.offset, place.length)
        except CheckpointError as error:
            raise CheckpointError(f"{stored} cannot be read: {error}") from None
        if not isinstance(tensor, Tensor) or (tuple(tensor.shape), tensor.dtype) != (sizes, dtype):
            what = f"{list(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{path}: {stored} is {what}; the index says {list(sizes)} {dtype}")
        self.files.opened(path, [dataclasses.replace(record, tensor=stored) for record in found], is_new)
        return tensor


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
