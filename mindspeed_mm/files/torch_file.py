"""Writes a `.pt` file tensor by tensor, without holding all tensors in memory.

torch.save needs all tensors at once. The format is an uncompressed zip archive: a pickle in which storages are
numbers, and a record of raw bytes per storage. `torch.load` reads these files with weights_only and mmap.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from typing import BinaryIO

from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files.checksum import crc32
from mindspeed_mm.files.plan import Piece
from mindspeed_mm.files.raw import as_bytes
from mindspeed_mm.files.torch_reader import STORAGES

_ROOT = "archive"
_ALIGNMENT = 64  # torch's alignment; a mapped tensor then starts on a cache line
_PADDING_ID = b"FB"  # id of torch's own padding in a record's header
_FIXED_HEADER, _LONG_SIZES = 30, 20  # bytes of a zip record's header, and of its field for sizes beyond 4 GiB


class TorchFileWriter:
    """Writes `content`, whose tensors are `Piece`s, to an open file; `write` takes the bytes of one piece, in any
    order.
    """

    def __init__(self, file: BinaryIO, content: dict):
        self._file = file
        self._zip = _Zip(file, "w", zipfile.ZIP_STORED)
        pickled, self._keys = _pickle(content)
        self._record("data.pkl", [pickled], len(pickled))
        self._record("byteorder", [b"little"], 6)

    def write(self, piece: Piece, chunks: Iterable[Tensor]) -> None:
        """chunks: contiguous CPU tensors of the piece's dtype that together hold its values in order."""
        self._record(f"data/{self._keys.pop(piece)}", map(as_bytes, chunks), piece.nbytes)

    def close(self) -> None:
        """Completes the archive; leaves the file open."""
        if self._keys:
            raise CheckpointError(f"{len(self._keys)} tensors of the file were never written")
        self._record("version", [b"3\n"], 2)
        self._zip.close()

    def _record(self, name: str, data: Iterable, nbytes: int) -> None:
        info = zipfile.ZipInfo(f"{_ROOT}/{name}")  # dated 1980, so that equal content gives equal files
        info.file_size = info.compress_size = nbytes
        info.external_attr = 0o600 << 16
        info.CRC = 0
        info.header_offset = self._file.tell()
        long = nbytes >= zipfile.ZIP64_LIMIT
        header = info.header_offset + _FIXED_HEADER + len(info.filename) + (_LONG_SIZES if long else 0)
        padding = -(header + 4) % _ALIGNMENT
        info.extra = struct.pack("<2sH", _PADDING_ID, padding) + bytes(padding)
        # `ZipFile.open` is not used: its checksum takes more time than the writing.
        self._file.write(info.FileHeader(long))
        begin = self._file.tell()
        for piece in data:
            self._file.write(piece)
            info.CRC = crc32(piece, info.CRC)
        end = self._file.tell()
        if end - begin != nbytes:
            raise CheckpointError(f"{name}: {end - begin} bytes were given for a tensor of {nbytes}")
        self._file.seek(info.header_offset)
        self._file.write(info.FileHeader(long))
        self._file.seek(end)
        self._zip.filelist.append(info)
        self._zip.NameToInfo[info.filename] = info
        self._zip.start_dir = end  # offset at which `close` writes the table of contents


class _Zip(zipfile.ZipFile):
    def __del__(self):
        """Does nothing: an incomplete archive is discarded, and its file is already closed."""


class _Storage:
    """A storage; the pickler numbers it, and the number names its record."""

    def __init__(self, piece: Piece):
        self.piece = piece


class _StoredTensor:
    """Pickles like a torch tensor that owns its storage."""

    def __init__(self, piece: Piece):
        self.piece = piece

    def __reduce__(self):
        strides, step = [], 1
        for size in reversed(self.piece.shape):
            strides.insert(0, step)
            step *= max(size, 1)
        return _rebuild_tensor_v2, (
            _Storage(self.piece),
            0,
            self.piece.shape,
            tuple(strides),
            False,
            OrderedDict(),
        )


class _Pickler(pickle.Pickler):
    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.keys: dict[Piece, str] = {}

    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        piece = value.piece
        if piece.dtype not in STORAGES:
            raise CheckpointError(f"{piece.name}: {piece.dtype} cannot be written to a .pt file here; use --dtype")
        key = self.keys.setdefault(piece, str(len(self.keys)))
        return "storage", STORAGES[piece.dtype], key, "cpu", piece.nbytes // piece.dtype.itemsize


def _pickle(content: dict) -> tuple[bytes, dict[Piece, str]]:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(_with_tensors(content))
    return buffer.getvalue(), pickler.keys


def _with_tensors(value):
    if isinstance(value, Piece):
        return _StoredTensor(value)
    if isinstance(value, dict):
        return {key: _with_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item) for item in value]
    return value
