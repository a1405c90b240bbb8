"""Checksums of the files of a checkpoint: taken by the rank that wrote a file, recorded in one list per checkpoint."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from torch import Tensor

from mindspeed_mm import atomic
from mindspeed_mm.checkpoint import torch_reader
from mindspeed_mm.checkpoint.checksum import crc32
from mindspeed_mm.errors import CheckpointError

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 24

Checksums = dict[str, list[int]]  # path below the checkpoint's directory -> [bytes, CRC-32]
Beat = Callable[[str], None]  # is told of each block that is done, in words


def measure(paths: list[Path], directory: Path, beat: Beat = lambda what: None) -> Checksums:
    """Checksums of files below a directory."""
    return {str(path.relative_to(directory)): [path.stat().st_size, _checksum(path, beat)] for path in paths}


def write(found: Checksums, directory: Path) -> None:
    """Record the checksums of all files of a checkpoint."""
    atomic.write_text(directory / CHECKSUMS, json.dumps(found, indent=1))


def read(directory: Path) -> Checksums:
    """What was recorded; nothing for checkpoints of other programs, which record nothing."""
    record = directory / CHECKSUMS
    if not record.is_file():
        return {}
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        fits = isinstance(found, dict) and all(_is_entry(name, facts) for name, facts in found.items())
    except (ValueError, RecursionError):
        fits = False
    if not fits:
        raise CheckpointError(f"{record}: is damaged; it must hold the size and checksum of each file")
    return found


def covering(paths: Iterable[Path]) -> dict[Path, tuple[Path, str, list[int]]]:
    """Those of the files that a checkpoint's record lists: path -> (directory of the record, name in it, its entry)."""
    records: dict[Path, Checksums] = {}
    found = {}
    for path in paths:
        for directory in (path.parent, path.parent.parent):  # the checkpoint's, whether or not in a rank's folder
            if directory not in records:
                records[directory] = read(directory)
            name = str(path.relative_to(directory))
            if name in records[directory]:
                found[path] = directory, name, records[directory][name]
                break
    return found


class Proof:
    """That the bytes of files are those that were written: by the record of their checkpoint, or else by their own checksums.

    It is had when the first values are wanted and not when the files are opened, and once.
    """

    def __init__(
        self, paths: Iterable[Path], records: Iterable[torch_reader.Record] = (), record_is_checked: bool = False
    ):
        """paths: files that are read; records: those of the torch files among them.

        record_is_checked: the files that a checkpoint's record lists have been compared with it.
        """
        listed = covering(paths)
        self._records = {
            record.data.data_ptr(): record for record in records if record.path not in listed and len(record.data)
        }
        self._listed = {} if record_is_checked else listed

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raise CheckpointError unless the bytes of the tensors, all of their storages, are as they were written."""
        self._check_files()
        for tensor in tensors:
            record = self._records.get(tensor.untyped_storage().data_ptr())
            if record is not None:
                torch_reader.verify(record)
                del self._records[record.data.data_ptr()]

    def check_all(self) -> None:
        """Raise CheckpointError unless all bytes are as they were written."""
        self._check_files()
        for record in self._records.values():
            torch_reader.verify(record)
        self._records.clear()

    def _check_files(self) -> None:
        for directory, name, facts in self._listed.values():
            verify({name: facts}, directory)
        self._listed = {}


def verify(wanted: Checksums, directory: Path, beat: Beat = lambda what: None) -> None:
    """Raise CheckpointError for the first file that is not what was recorded."""
    for name, (size, checksum) in wanted.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: truncated, {path.stat().st_size} of {size} bytes")
        if _checksum(path, beat) != checksum:
            raise CheckpointError(f"{path}: damaged, its checksum is not the one that was recorded")


def _is_entry(name: str, facts: object) -> bool:
    """Whether a line of a record is a file below the directory, with its size and checksum."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return False
    return isinstance(facts, list) and len(facts) == 2 and all(type(number) is int for number in facts)


def _checksum(path: Path, beat: Beat) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = crc32(block, value)
            beat("checking a part of a file")
    return value
