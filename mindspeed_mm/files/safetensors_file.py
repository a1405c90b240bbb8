"""Reads safetensors files memory-mapped, and writes them tensor by tensor.

The format is a length, a JSON header and the tensors' bytes. The library is not used for reading, because every tensor
must lie in the mapped file (`mapped.release` depends on it), nor for writing, because it needs all tensors at once.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import raw
from mindspeed_mm.files.checksum import crc32, joined
from mindspeed_mm.files.plan import Piece

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # the library's limit


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name, memory-mapped; reads only the header.

    As the format demands, the tensors fill the bytes after the header without gap or overlap, each under one name.
    """
    size = path.stat().st_size
    header, start = _header(path, size)
    storage = raw.mapped(path)
    tensors = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _entry(path, name, entry, size - start)
        places.append((begin, end, name))
        # A slice of the storage and not a view: a view of dtype float32 must start at a multiple of 4.
        tensors[name] = torch.tensor([], dtype=dtype).set_(storage[start + begin : start + end]).view(shape)
    _check_places(path, places, size - start)
    return tensors


def metadata(path: Path) -> dict[str, str]:
    """The texts that a file holds beside its tensors."""
    header, _ = _header(path, path.stat().st_size)
    found = header.get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(f"{path}: its metadata are no texts; the file is damaged")
    return found


def _check_places(path: Path, places: list[tuple[int, int, str]], available: int) -> None:
    """Raises CheckpointError unless the tensors (first byte, end, name) follow each other without gap or overlap."""
    at, before = 0, "the header"
    for begin, end, name in sorted(places):
        if begin != at:
            raise CheckpointError(f"{path}: {name} begins at byte {begin}, {before} ends at {at}; the file is damaged")
        at, before = end, name
    if at != available:
        raise CheckpointError(f"{path}: its tensors end at byte {at}, there are {available}; the file is damaged")


def indexed_files(path: Path) -> list[Path]:
    """Files that an `*.safetensors.index.json` names. Raises CheckpointError if one is missing."""
    found = [path.parent / name for name in sorted(set(_weight_map(path).values()))]
    for file in found:
        if file.parent != path.parent or not file.is_file():
            raise CheckpointError(f"{file}: missing; {path.name} names it, and all its files are needed")
    return found


def read_index(path: Path) -> dict[str, Tensor]:
    """Tensors of all files that an `*.safetensors.index.json` names."""
    tensors: dict[str, Tensor] = {}
    table = _weight_map(path)
    for file in indexed_files(path):
        found = read(file)
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise CheckpointError(f"{path}: {twice[0]} is in {file.name} and in another of its files; which is meant?")
        tensors |= found
        strange = [name for name in found if table.get(name) != file.name]
        if strange:
            raise CheckpointError(
                f"{path}: does not say that {strange[0]} is in {file.name}; its files are of two models"
            )
    missing = sorted(table.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"{path}: names {missing[0]}, but {table[missing[0]]} does not hold it")
    return tensors


def index_text(files: dict[str, list[Piece]], names: dict[Piece, str]) -> str:
    """Index of a model in several files. files: file name -> its pieces. names: piece -> name."""
    total = sum(piece.nbytes for pieces in files.values() for piece in pieces)
    table = {names[piece]: file for file, pieces in files.items() for piece in pieces}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}, indent=2) + "\n"


class SafetensorsWriter:
    """Writes one dict of `Piece`s to an open file; `write` takes the bytes of one piece, in any order of pieces."""

    def __init__(self, file: BinaryIO, content: dict[str, Piece], metadata: Mapping[str, str] | None = None):
        """metadata: texts beside the tensors."""
        self._file = file
        self._offsets: dict[Piece, int] = {}
        header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        at = 0
        # Wide types first, so that every tensor starts at a multiple of its element size.
        for name, piece in sorted(content.items(), key=lambda item: -item[1].dtype.itemsize):
            if piece.dtype not in _NAMES:
                raise CheckpointError(f"{name}: {piece.dtype} cannot be written to a safetensors file; use --dtype")
            header[name] = {
                "dtype": _NAMES[piece.dtype],
                "shape": list(piece.shape),
                "data_offsets": [at, at + piece.nbytes],
            }
            self._offsets[piece] = at
            at += piece.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        beginning = struct.pack("<Q", len(text)) + text
        file.write(beginning)
        self._start = file.tell()
        # offset in the file -> CRC-32 and number of the bytes that stand there
        self._sums = {0: (crc32(beginning), len(beginning))}
        self._end = self._start + at

    def write(self, piece: Piece, chunks: Iterable[Tensor]) -> None:
        """chunks: contiguous CPU tensors of the piece's dtype that together hold its values in order."""
        offset = self._offsets.pop(piece)
        self._file.seek(self._start + offset)
        checksum = 0
        for chunk in chunks:
            data = raw.as_bytes(chunk)
            self._file.write(data)
            checksum = crc32(data, checksum)
        if piece.nbytes:
            self._sums[self._start + offset] = checksum, piece.nbytes
        if self._file.tell() != self._start + offset + piece.nbytes:
            raise CheckpointError(f"{piece.name}: other than the {piece.nbytes} bytes of the tensor were given")

    def close(self) -> None:
        """Checks that all tensors were written; leaves the file open."""
        if self._offsets:
            raise CheckpointError(f"{len(self._offsets)} tensors of the file were never written")
        self._file.truncate(self._end)

    @property
    def facts(self) -> list[int]:
        """Bytes and CRC-32 of the complete file; the format itself has no checksums."""
        return [self._end, joined(self._sums[offset] for offset in sorted(self._sums))]


def _weight_map(path: Path) -> dict[str, str]:
    """Maps each tensor's name to its file."""
    try:
        table = _json(path.read_bytes())["weight_map"]
        return {str(name): str(file) for name, file in table.items()}
    except _Twice as error:
        raise CheckpointError(f"{path}: names {error} twice; the file is damaged") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f'{path}: is no index of safetensors files: needs "weight_map" of name to file') from None


def _header(path: Path, size: int) -> tuple[dict, int]:
    """The header, and the offset of the tensors' bytes."""
    with open(path, "rb") as file:
        length = file.read(8)
        count = struct.unpack("<Q", length)[0] if len(length) == 8 else None
        if count is None or count > min(size - 8, _LARGEST_HEADER):
            raise CheckpointError(f"{path}: cannot be read, it is truncated or not a safetensors file")
        try:
            header = _json(file.read(count))
        except _Twice as error:
            raise CheckpointError(f"{path}: names {error} twice in its header; the file is damaged") from None
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path}: cannot be read, its header is not JSON; it is damaged or not a safetensors file"
        )
    return header, 8 + count


class _Twice(ValueError):
    """A duplicate key."""


def _json(text: bytes) -> Any:
    """Parses a JSON text in UTF-8. Raises _Twice for a duplicate key in an object, ValueError for invalid JSON."""

    def unique(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise _Twice(next(name for name in names if names.count(name) > 1))
        return found

    return json.loads(text.decode("utf-8"), object_pairs_hook=unique)


def _entry(path: Path, name: str, entry: Any, available: int) -> tuple[torch.dtype, list[int], int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers_are_fine = all(type(size) is int and size >= 0 for size in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{path}: {name} has no dtype, shape and data_offsets; the file is damaged") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} is of dtype {dtype!r}; readable are {', '.join(DTYPES)}")
    if not numbers_are_fine or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise CheckpointError(f"{path}: {name} {shape} {dtype} does not fill its bytes {begin} to {end}; it is damaged")
    if end > available:
        raise CheckpointError(f"{path}: truncated: {name} ends at byte {end} of the tensors, there are {available}")
    return DTYPES[dtype], shape, begin, end
