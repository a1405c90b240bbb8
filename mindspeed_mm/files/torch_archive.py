"""The zip archive that a torch file is: each record must be complete, uncompressed and apart from the others.

torch.load does not check the archive's table: it takes compressed bytes for values, and compares no sizes or checksums.
"""

import dataclasses
import io
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, NoReturn

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files.checksum import crc32

_HEADER = struct.Struct(
    "<4sHHHHHIIIHH"
)  # of a record: signature, .., flags, .., sizes, lengths of name and extra field
_END = struct.Struct("<4sHHHHIIH")  # end of the archive, without a comment
_DESCRIPTORS = (0, 16, 24)  # bytes that may follow a record's data: none, or its sizes repeated
_ENCRYPTED = 1
_OLD_FORMAT = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # first bytes of files by torch.save before torch 1.6
_LARGEST_PICKLE = 2**30
_REASON = 200  # characters kept of a library's message


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """Where a record's bytes lie, and their CRC-32."""

    start: int  # offset in the archive
    nbytes: int
    crc: int


class Part(io.RawIOBase):
    """A part of an open file, read like a file."""

    def __init__(self, file: BinaryIO, start: int, length: int):
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


def read_entries(path: Path, part: Part) -> dict[str, Entry]:
    """Records of an archive by name below its root; each must be uncompressed, complete and apart from the others."""
    _check_ends(path, part)
    try:
        with zipfile.ZipFile(part) as archive:
            listed, table = archive.infolist(), archive.start_dir
    except Exception as error:  # a damaged table of contents raises many kinds of error
        _damaged(path, f"its table of contents is damaged: {error}")
    found: dict[str, Entry] = {}
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
        found[name] = Entry(start, info.file_size, info.CRC)
    if table - at not in _DESCRIPTORS:
        _damaged(path, f"its records end at byte {at}, the table of contents begins at {table}")
    return _below_root(path, found)


def _check_ends(path: Path, part: Part) -> None:
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


def _data_start(path: Path, part: Part, info: zipfile.ZipInfo) -> int:
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


def _below_root(path: Path, found: dict[str, Entry]) -> dict[str, Entry]:
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


def bytes_of(path: Path, part: Part, entries: dict[str, Entry], name: str) -> bytes:
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
        f"{path}: cannot be read, it is truncated or damaged ({one_line(why)}); fetch or copy it again"
    )


def one_line(words: object) -> str:
    return " ".join(str(words).split())[:_REASON]
