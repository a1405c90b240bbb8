"""Reads untrusted `.pt` files: runs no code from the file, and leaves values in the mapped file.

The format is a zip archive (`torch_archive.py`): a pickle in which storages are numbers, and a record of raw bytes per
storage. The pickle may create tensors and plain values only. A record's checksum is compared before its values are used
(`integrity.Proof`).
"""

import argparse
import collections
import dataclasses
import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import raw, torch_archive, trusted
from mindspeed_mm.files.checksum import crc32

STORAGES = {  # names in the pickle; other dtypes are saved as bytes
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
_DTYPES = {storage.__name__: dtype for dtype, storage in STORAGES.items()}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Record:
    """Mapped bytes of one storage, and `crc`, their checksum in the archive."""

    path: Path
    tensor: str  # name of a tensor in it, for messages
    data: torch.UntypedStorage
    crc: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype | None  # None: bytes, whose dtype the tensor gives


class _Stored:
    """A tensor while the pickle is read; ignores attributes that the pickle sets."""

    def __init__(self, storage: _Storage, dtype: torch.dtype, offset: int, shape: tuple, strides: tuple):
        self.storage, self.dtype, self.offset, self.shape, self.strides = storage, dtype, offset, shape, strides

    def __setstate__(self, state):
        pass


def read(path: Path) -> tuple[object, list[Record]]:
    """Content of a file, with tensors in the mapped file, and the records that hold them.

    Raises CheckpointError for damage, for another format, and for a pickle that names code to run.
    """
    mapped = raw.mapped(path)
    return read_part(path, mapped, 0, len(mapped))


def read_part(path: Path, mapped: torch.UntypedStorage, start: int, length: int) -> tuple[object, list[Record]]:
    """`read` for an archive that is a part of a mapped file. start, length: in bytes."""
    with open(path, "rb") as file:
        part = torch_archive.Part(file, start, length)
        entries = torch_archive.read_entries(path, part)
        pickled = torch_archive.bytes_of(path, part, entries, "data.pkl")
        if "byteorder" in entries and (order := torch_archive.bytes_of(path, part, entries, "byteorder")) != b"little":
            raise CheckpointError(f"{path}: its byte order is {order[:20]!r}; only little-endian files are read")
    sizes = {key.removeprefix("data/"): entry.nbytes for key, entry in entries.items() if key.startswith("data/")}
    content = _unpickled(path, pickled, sizes)
    maker = _Maker(path, mapped, start, entries)
    try:
        return maker.made(content, ""), list(maker.records.values())
    except CheckpointError:
        raise
    except Exception as error:  # for example too deep nesting, or far too large numbers
        raise CheckpointError(
            f"{path}: refused, or damaged ({type(error).__name__}: {torch_archive.one_line(error)})"
        ) from None


def verify(record: Record) -> None:
    """Compares a record's bytes with its checksum. CheckpointError names the tensor."""
    data = torch.empty(0, dtype=torch.uint8).set_(record.data)
    if crc32(raw.as_bytes(data)) != record.crc:
        raise CheckpointError(
            f"{record.path}: {record.tensor} is damaged, its bytes do not have the checksum that the file says; "
            "fetch or copy the file again"
        )


# ------------------------------------------------------------------------------------------------------------- the pickle


def check_opcodes(pickled: bytes) -> None:
    """Raises ValueError for an incomplete pickle, or one that asks for memory beyond its own size.

    The C unpickler keeps a table as long as the largest number in a PUT: ten bytes can ask for 34 GB.
    """
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(pickled):
            raise ValueError(f"{opcode.name} {argument} in a pickle of {len(pickled)} bytes")


def _unpickled(path: Path, pickled: bytes, sizes: dict[str, int]) -> object:
    try:
        check_opcodes(pickled)
        return _Unpickler(pickled, sizes).load()
    except Exception as error:  # damaged or hostile bytes raise any kind of error in the unpickler
        raise CheckpointError(
            f"{path}: refused, it holds more than tensors and plain values, or is damaged ({torch_archive.one_line(error)})"
        ) from None


class _Unpickler(pickle.Unpickler):
    """Creates plain values and `_Stored` tensors, and nothing else."""

    def __init__(self, pickled: bytes, sizes: dict[str, int]):
        """sizes: key of each storage -> bytes of its record."""
        super().__init__(io.BytesIO(pickled))
        self._sizes = sizes

    def find_class(self, module: str, name: str):
        if module == "torch._utils" and name in _REBUILD:
            return _REBUILD[name]
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return _rebuild_from_type
        if module in ("torch", "torch.storage"):
            if name == "UntypedStorage":
                return _StorageType(None)
            if name in _DTYPES:
                return _StorageType(_DTYPES[name])
        found = trusted.find(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return found

    def persistent_load(self, reference):
        kind, storage, key, _, count = reference
        if kind != "storage" or not isinstance(storage, _StorageType) or type(count) is not int:
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is no storage")
        if key not in self._sizes:
            raise pickle.UnpicklingError(f"its storage {key!r} is not in the file")
        itemsize = 1 if storage.dtype is None else storage.dtype.itemsize
        if count * itemsize != self._sizes[key]:
            raise pickle.UnpicklingError(f"its storage {key!r} has {self._sizes[key]} bytes, not {count} x {itemsize}")
        return _Storage(key, storage.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class _StorageType:
    """Stands in for torch's storage classes."""

    dtype: torch.dtype | None


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Stored:
    return _stored(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, *_) -> _Stored:
    return _stored(storage, dtype, offset, shape, strides)


def _rebuild_parameter(data, *_) -> _Stored:
    if not isinstance(data, _Stored):
        raise pickle.UnpicklingError("it holds a parameter that is no tensor")
    return data


def _rebuild_from_type(function, cls, arguments, state) -> _Stored:
    if function not in _REBUILD.values():
        raise pickle.UnpicklingError(f"it holds a tensor that {function!r} makes")
    return function(*arguments)


def _stored(storage, dtype, offset, shape, strides) -> _Stored:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype) or len(shape) != len(strides):
        raise pickle.UnpicklingError("it holds a tensor without a storage, dtype, shape and strides")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise pickle.UnpicklingError(f"it holds a tensor of shape {tuple(shape)}, strides {tuple(strides)} at {offset}")
    return _Stored(storage, dtype, offset, tuple(shape), tuple(strides))


_REBUILD = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_tensor_v3,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
}


# ------------------------------------------------------------------------------------------------------------ the tensors


class _Maker:
    """Replaces placeholders by tensors."""

    def __init__(self, path: Path, mapped: torch.UntypedStorage, start: int, entries: dict[str, torch_archive.Entry]):
        self.path, self.mapped, self.start, self.entries = path, mapped, start, entries
        self.records: dict[str, Record] = {}
        self._made: dict[int, object] = {}  # by id; the pickle's values live as long as this object

    def made(self, value: Any, name: str) -> Any:
        """value: from the pickle. name: for messages, such as "model.proj_out.bias"."""
        if id(value) not in self._made:
            # once: a value that appears in many places may hold others that do
            self._made[id(value)] = self._make(value, name)
        return self._made[id(value)]

    def _make(self, value: Any, name: str) -> Any:
        if isinstance(value, _Stored):
            return self._tensor(value, name or "its tensor")
        if type(value) in (dict, collections.OrderedDict):
            below = f"{name}." if name else ""
            return type(value)((key, self.made(item, f"{below}{key}")) for key, item in value.items())
        if type(value) in (list, tuple):
            return type(value)(self.made(item, f"{name}[{at}]") for at, item in enumerate(value))
        if isinstance(value, argparse.Namespace):
            for key, item in vars(value).items():
                vars(value)[key] = self.made(item, f"{name}.{key}")
        return value

    def _tensor(self, stored: _Stored, name: str) -> Tensor:
        key, dtype = stored.storage.key, stored.dtype
        held = self.entries[f"data/{key}"].nbytes // dtype.itemsize
        reach = 1 + sum((size - 1) * step for size, step in zip(stored.shape, stored.strides, strict=True))
        if math.prod(stored.shape) > held or (math.prod(stored.shape) and stored.offset + reach > held):
            raise CheckpointError(
                f"{self.path}: {name} {list(stored.shape)} {dtype} with strides {list(stored.strides)} from value "
                f"{stored.offset} does not lie in its {held} values; it is damaged"
            )
        if key not in self.records:
            self._add(key, name)
        return torch.empty(0, dtype=dtype).set_(self.records[key].data, stored.offset, stored.shape, stored.strides)

    def _add(self, key: str, name: str) -> None:
        entry = self.entries[f"data/{key}"]
        begin = self.start + entry.start
        # A slice of the storage and not a view: a view of dtype float32 must start at a multiple of 4.
        self.records[key] = Record(self.path, name, self.mapped[begin : begin + entry.nbytes], entry.crc)
