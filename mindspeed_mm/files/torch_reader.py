"""Reads untrusted `.pt` files: checks the layout, runs no code from the file, and leaves values in the mapped file.

The format is a zip archive: a pickle in which storages are numbers, and a record of raw bytes per storage. torch.load
maps the records without checking the archive's table: it takes compressed bytes for values, and compares no sizes or
checksums. Here each record must be complete, uncompressed and apart from the others, and the pickle may create tensors
and plain values only. A record's checksum is compared before its values are used (`integrity.Proof`).
"""

import argparse
import collections
import dataclasses
import io
import math
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import trusted
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
_HEADER = struct.Struct(
    "<4sHHHHHIIIHH"
)  # of a record: signature, .., flags, .., sizes, lengths of name and extra field
_END = struct.Struct("<4sHHHHIIH")  # end of the archive, without a comment
_DESCRIPTORS = (0, 16, 24)  # bytes that may follow a record's data: none, or its sizes repeated
_ENCRYPTED = 1
_OLD_FORMAT = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # first bytes of files by torch.save before torch 1.6
_LARGEST_PICKLE = 2**30
_REASON = 200  # characters kept of a library's message


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Record:
    """Mapped bytes of one storage: `data` is uint8 [n], `crc` the checksum in the archive."""

    path: Path
    tensor: str  # name of a tensor in it, for messages
    data: Tensor
    crc: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    start: int  # offset in the archive
    nbytes: int
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


def read(
    path: Path, mapped: torch.UntypedStorage | None = None, start: int = 0, length: int | None = None
) -> tuple[object, list[Record]]:
    """Content of a file, with tensors in the mapped file, and the records that hold them.

    start, length: the bytes of the file that form the archive; `mapped` maps these bytes. Raises CheckpointError for
    damage, for another format, and for a pickle that names code to run.
    """
    if mapped is None:
        size = path.stat().st_size
        mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size) if size else None
        length = size
    with open(path, "rb") as file:
        part = Part(file, start, length)
        entries = _entries(path, part)
        pickled = _bytes_of(path, part, entries, "data.pkl")
        if "byteorder" in entries and (order := _bytes_of(path, part, entries, "byteorder")) != b"little":
            raise CheckpointError(f"{path}: its byte order is {order[:20]!r}; only little-endian files are read")
    sizes = {key.removeprefix("data/"): entry.nbytes for key, entry in entries.items() if key.startswith("data/")}
    content = _unpickled(path, pickled, sizes)
    maker = _Maker(path, mapped, start, entries)
    try:
        return maker.made(content, ""), list(maker.records.values())
    except CheckpointError:
        raise
    except Exception as error:  # for example too deep nesting, or far too large numbers
        raise CheckpointError(f"{path}: refused, or damaged ({type(error).__name__}: {_one_line(error)})") from None


def verify(record: Record) -> None:
    """Compares a record's bytes with its checksum. CheckpointError names the tensor."""
    if crc32(memoryview(record.data.numpy())) != record.crc:
        raise CheckpointError(
            f"{record.path}: {record.tensor} is damaged, its bytes do not have the checksum that the file says; "
            "fetch or copy the file again"
        )


# ------------------------------------------------------------------------------------------------------------ the archive


def _entries(path: Path, part: "Part") -> dict[str, _Entry]:
    """Records of an archive by name below its root; each must be uncompressed, complete and apart from the others."""
    _check_ends(path, part)
    try:
        with zipfile.ZipFile(part) as archive:
            listed, table = archive.infolist(), archive.start_dir
    except Exception as error:  # a damaged table of contents raises many kinds of error
        _damaged(path, f"its table of contents is damaged: {error}")
    found: dict[str, _Entry] = {}
    at = 0
    for info in sorted(listed, key=lambda info: info.header_offset):
        name = info.filename
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise CheckpointError(
                f"{path}: its record {name} is compressed or encrypted, as no torch file is; it was packed again. Unpack "
                "it and pack it without compression (unzip; zip -0 -r), or fetch the file again"
            )
        if info.file_size != info.compress_size:
            _damaged(path, f"record {name} has two sizes, {info.file_size} and {info.compress_size}")
        if info.header_offset - at not in _DESCRIPTORS:
            _damaged(path, f"record {name} begins at byte {info.header_offset}, the one before it ends at {at}")
        start = _data_start(path, part, info)
        at = start + info.file_size
        if at > table:
            _damaged(path, f"record {name} ends at byte {at}, the table of contents begins at {table}")
        if name in found:
            _damaged(path, f"there are two records {name}")
        found[name] = _Entry(start, info.file_size, info.CRC)
    if table - at not in _DESCRIPTORS:
        _damaged(path, f"its records end at byte {at}, the table of contents begins at {table}")
    return _below_root(path, found)


def _check_ends(path: Path, part: "Part") -> None:
    """Checks that the first record is at the beginning and that nothing follows the archive's end."""
    if part.length < _END.size:
        _damaged(path, f"{part.length} bytes")
    begin = part.read(len(_OLD_FORMAT))
    if begin == _OLD_FORMAT:
        raise CheckpointError(
            f'{path}: is in the format of torch before 1.6, which has no checksums; save it again: python -c "import torch; '
            f"torch.save(torch.load('{path}', map_location='cpu', weights_only=True), '{path}.new')\""
        )
    if begin[:4] != b"PK\x03\x04":
        raise CheckpointError(
            f"{path}: cannot be read, it is damaged or not a torch file (it begins with {begin[:4]!r})"
        )
    part.seek(-_END.size, io.SEEK_END)
    signature, *_, comment = _END.unpack(part.read(_END.size))
    if signature != b"PK\x05\x06" or comment:
        _damaged(path, "it does not end as an archive does")


def _data_start(path: Path, part: "Part", info: zipfile.ZipInfo) -> int:
    """Offset of a record's data; the record's own header must agree with the table of contents."""
    part.seek(info.header_offset)
    header = part.read(_HEADER.size)
    if len(header) < _HEADER.size:
        _damaged(path, f"record {info.filename} begins behind the end of the file")
    signature, _, flags, method, *_, name_length, extra_length = _HEADER.unpack(header)
    name = part.read(name_length)
    if (signature, method, flags & _ENCRYPTED) != (b"PK\x03\x04", 0, 0) or name != info.orig_filename.encode(
        "utf-8" if flags & 0x800 else "cp437", "replace"
    ):
        _damaged(path, f"record {info.filename} is listed at byte {info.header_offset}, where it is not")
    return info.header_offset + _HEADER.size + name_length + extra_length


def _below_root(path: Path, found: dict[str, _Entry]) -> dict[str, _Entry]:
    """Names without the root folder of a torch file."""
    roots = {name.partition("/")[0] for name in found}
    below = {name.partition("/")[2]: entry for name, entry in found.items() if not name.endswith("/")}
    if len(roots) != 1 or "data.pkl" not in below:
        raise CheckpointError(f"{path}: is a zip archive, but not one that torch.save wrote (it has no NAME/data.pkl)")
    if "constants.pkl" in below:
        raise CheckpointError(f"{path}: is a TorchScript program; give the state dict that it was made from")
    if all(entry.crc == 0 for entry in below.values()):
        raise CheckpointError(
            f"{path}: was saved without checksums (torch.serialization.set_crc32_options(False)), so that damage to it "
            "cannot be seen; save it again with them"
        )
    return below


def _bytes_of(path: Path, part: "Part", entries: dict[str, _Entry], name: str) -> bytes:
    """Content of a small record, compared with its checksum."""
    entry = entries[name]
    if entry.nbytes > _LARGEST_PICKLE:
        raise CheckpointError(f"{path}: its {name} has {entry.nbytes} bytes; more than {_LARGEST_PICKLE} are not read")
    part.seek(entry.start)
    data = part.read(entry.nbytes)
    if crc32(data) != entry.crc:
        _damaged(path, f"record {name} does not have its checksum")
    return data


def _damaged(path: Path, why: str) -> NoReturn:
    raise CheckpointError(
        f"{path}: cannot be read, it is truncated or damaged ({_one_line(why)}); fetch or copy it again"
    )


def _one_line(words: object) -> str:
    return " ".join(str(words).split())[:_REASON]


# ------------------------------------------------------------------------------------------------------------- the pickle


def check_opcodes(pickled: bytes) -> None:
    """Raises ValueError for an incomplete pickle, or one that asks for memory beyond its own size.

    The C unpickler keeps a table as long as the largest number in a PUT: ten bytes can ask for 34 GB.
    """
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(pickled):
            raise ValueError(f"{opcode.name} {argument} in a pickle of {len(pickled)} bytes")


def _unpickled(path: Path, pickled: bytes, sizes: dict[str, int]) -> object:
    try:
        check_opcodes(pickled)
        return _Unpickler(pickled, sizes).load()
    except Exception as error:  # damaged or hostile bytes raise any kind of error in the unpickler
        raise CheckpointError(
            f"{path}: refused, it holds more than tensors and plain values, or is damaged ({_one_line(error)})"
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

    def __init__(self, path: Path, mapped: torch.UntypedStorage | None, start: int, entries: dict[str, _Entry]):
        self.path, self.mapped, self.start, self.entries = path, mapped, start, entries
        self.records: dict[str, Record] = {}
        self._slices: dict[str, torch.UntypedStorage] = {}
        self._made: dict[int, object] = {}  # by id; the pickle's values live as long as this object

    def made(self, value: object, name: str) -> object:
        """value: from the pickle. name: for messages, such as "model.proj_out.bias"."""
        if id(value) not in self._made:
            # once: a value that appears in many places may hold others that do
            self._made[id(value)] = self._make(value, name)
        return self._made[id(value)]

    def _make(self, value: object, name: str) -> object:
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
        if key not in self._slices:
            self._add(key, name)
        empty = torch.tensor([], dtype=dtype)
        return empty.set_(self._slices[key]).as_strided(stored.shape, stored.strides, stored.offset)

    def _add(self, key: str, name: str) -> None:
        entry = self.entries[f"data/{key}"]
        begin = self.start + entry.start
        # A slice of the storage and not a view: a view of dtype float32 must start at a multiple of 4.
        self._slices[key] = storage = self.mapped[begin : begin + entry.nbytes]
        data = torch.tensor([], dtype=torch.uint8).set_(storage)
        self.records[key] = Record(self.path, name, data, entry.crc)


class Part(io.RawIOBase):
    """A part of an open file, read like a file."""

    def __init__(self, file, start: int, length: int):
        self._file, self._start, self.length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self.length - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
