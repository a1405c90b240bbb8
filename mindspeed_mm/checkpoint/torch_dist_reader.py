"""Weights of a torch_dist checkpoint (see `torch_dist.py`), memory-mapped, without a process group or megatron-core.

Its index, `.metadata`, is a pickle of torch.distributed.checkpoint: it says for every tensor where which part of it lies.
It is read here and not by that library, which would run whatever is in it. Each part in a `.distcp` file is a small file
of torch.save, whose bytes are found without being read.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mindspeed_mm.checkpoint import files
from mindspeed_mm.checkpoint.layout import STATE_FILE
from mindspeed_mm.errors import CheckpointError

INDEX = ".metadata"
# Plain records; none does anything when it is made.
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
_RECORD_HEADER = 30  # bytes of a zip record's header before its name; the last four are the lengths of name and extra

Places = dict[tuple[str, tuple[int, ...]], object]  # (name, where in the whole tensor) -> where in the files


def read(
    directory: Path, groups: Mapping[str, str]
) -> tuple[dict[str, list[dict[str, Tensor]]], list[Path], int | None]:
    """Tensors in the mapped files, these files, and the iteration.

    groups: prefix of the stored names -> the group that the tensors go to. Each group is a list with a dict per TP rank
    that wrote it; a tensor that is not split is in all of them.
    """
    index = _index(directory / INDEX)
    places = {(key.fqn, tuple(key.offset or ())): place for key, place in index.storage_data.items()}
    opened: dict[Path, torch.UntypedStorage] = {}
    found: dict[str, dict[str, list[Tensor]]] = {}
    for stored, facts in index.state_dict_metadata.items():
        prefix, _, name = stored.partition(".")
        if prefix in groups and hasattr(facts, "chunks"):
            found.setdefault(groups[prefix], {})[name] = _parts(directory, stored, facts, places, opened)
    if not found:
        raise CheckpointError(f"{directory}: holds no tensors under {' or '.join(groups)}")
    shards = {group: _per_rank(tensors, directory) for group, tensors in found.items()}
    return shards, sorted(opened), files.load(directory / STATE_FILE).get("iteration")


def _parts(directory: Path, stored: str, facts, places: Places, opened: dict[Path, torch.UntypedStorage]):
    """The parts of one tensor, in the order of the dimension that is split."""
    found = []
    for chunk in sorted(facts.chunks, key=lambda chunk: tuple(chunk.offsets)):
        place = places.get((stored, tuple(chunk.offsets)))
        if place is None:
            raise CheckpointError(f"{directory}: the part of {stored} at {list(chunk.offsets)} is in no file")
        found.append(_tensor(directory, place, stored, tuple(chunk.sizes), facts.properties.dtype, opened))
    return found


def _per_rank(tensors: dict[str, list[Tensor]], directory: Path) -> list[dict[str, Tensor]]:
    count = max(map(len, tensors.values()))
    for name, parts in tensors.items():
        if len(parts) not in (1, count):
            raise CheckpointError(f"{directory}: {name} is in {len(parts)} parts, other tensors are in {count}")
    return [{name: parts[rank % len(parts)] for name, parts in tensors.items()} for rank in range(count)]


def _tensor(directory: Path, place, name: str, shape, dtype, opened: dict[Path, torch.UntypedStorage]) -> Tensor:
    """A tensor that torch.save wrote into a part of a larger file."""
    path = directory / Path(place.relative_path).name
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the index says that {name} is in it")
    size = path.stat().st_size
    if place.offset + place.length > size:
        raise CheckpointError(f"{path}: truncated: {name} ends at byte {place.offset + place.length} of {size}")
    if path not in opened:
        opened[path] = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    begin, nbytes = _data(path, place, name, shape)
    if nbytes != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{path}: {name} has {nbytes} bytes, {list(shape)} {dtype} needs others; it is damaged")
    # A slice of the storage and not a view: a view of dtype float32 must start at a multiple of 4.
    return torch.tensor([], dtype=dtype).set_(opened[path][begin : begin + nbytes]).view(shape)


def _data(path: Path, place, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Where in the file the values begin, and their number of bytes."""
    with open(path, "rb") as file:
        part = _Part(file, place.offset, place.length)
        try:
            with zipfile.ZipFile(part) as archive:
                (values,) = [entry for entry in archive.infolist() if "/data/" in entry.filename]
                (description,) = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
                layout = _TensorLayout(io.BytesIO(archive.read(description))).load()
            part.seek(values.header_offset)
            header = part.read(_RECORD_HEADER)
            name_length, extra_length = struct.unpack("<HH", header[-4:])
        except (ValueError, EOFError, OSError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path}: {name} cannot be read, the file is damaged ({error})") from None
    if layout != (0, shape, torch.empty(shape, device="meta").stride()):
        raise CheckpointError(f"{path}: {name} is stored as {layout}; expected contiguous values of {list(shape)}")
    return place.offset + values.header_offset + _RECORD_HEADER + name_length + extra_length, values.file_size


def _index(path: Path):
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; without it nothing in the directory can be found")
    try:
        with open(path, "rb") as file:
            return _IndexUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path}: refused or damaged ({error})") from None


class _IndexUnpickler(pickle.Unpickler):
    """Makes the records that an index consists of, and nothing else."""

    def find_class(self, module: str, name: str):
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index needs")


class _TensorLayout(pickle.Unpickler):
    """Reads torch.save's description of one tensor as (offset in its storage, shape, strides)."""

    def find_class(self, module: str, name: str):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *rest: (offset, tuple(shape), tuple(strides))
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")

    def persistent_load(self, reference):
        return reference


class _Part(io.RawIOBase):
    """A part of an open file, as a file."""

    def __init__(self, file, start: int, length: int):
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
