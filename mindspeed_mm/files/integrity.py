"""Checksums of a checkpoint's files: computed by the rank that wrote a file, stored in one record per checkpoint."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from torch import Tensor

from mindspeed_mm import atomic
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import torch_reader
from mindspeed_mm.files.checksum import crc32

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 24

Checksums = dict[str, list[int]]  # path below the checkpoint's directory -> [bytes, CRC-32]
Beat = Callable[[str], None]  # called with a description after each block


def measure(paths: list[Path], directory: Path, beat: Beat = lambda what: None) -> Checksums:
    """Computes the checksums of files below a directory."""
    return {str(path.relative_to(directory)): [path.stat().st_size, _checksum(path, beat)] for path in paths}


def write(found: Checksums, directory: Path) -> None:
    """Writes the record of all files of a checkpoint."""
    atomic.write_text(directory / CHECKSUMS, json.dumps(found, indent=1))


def change(facts: Mapping[Path, list[int] | None]) -> None:
    """Replaces the entries of files in the records of their folders; None removes an entry."""
    for folder in {path.parent for path in facts}:
        if not folder.is_dir():
            continue
        known = read(folder)
        found = {name: entry for name, entry in known.items() if folder / name not in facts}
        found |= {path.name: entry for path, entry in facts.items() if path.parent == folder and entry is not None}
        if found != known:
            write(found, folder)


def read(directory: Path) -> Checksums:
    """Reads the record; empty for checkpoints of other programs, which have none."""
    record = directory / CHECKSUMS
    if not record.is_file():
        return {}
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(_is_entry(name, facts) for name, facts in found.items()):
        raise CheckpointError(f"{record}: is damaged; it must hold the size and checksum of each file")
    return found


def covering(paths: Iterable[Path]) -> dict[Path, tuple[Path, str, list[int]]]:
    """Maps each file that a checkpoint's record lists to (directory of the record, name in it, entry)."""
    records: dict[Path, Checksums] = {}
    found = {}
    for path in paths:
        # the checkpoint's directory, for files in a rank's folder or beside it
        for directory in (path.parent, path.parent.parent):
            if directory not in records:
                records[directory] = read(directory)
            name = str(path.relative_to(directory))
            if name in records[directory]:
                found[path] = directory, name, records[directory][name]
                break
    return found


class Proof:
    """Proves that files are unchanged since they were written: by the checkpoint's record, else by the files' own
    checksums.

    The check runs once, before the first values are used, not when the files are opened.
    """

    def __init__(
        self, paths: Iterable[Path], records: Iterable[torch_reader.Record] = (), record_is_checked: bool = False
    ):
        """paths: files that are read. records: records of the torch files among them.

        record_is_checked: True if the checkpoint's record has already been compared with the files that it lists.
        """
        listed = covering(paths)
        self._covered = set(listed)
        self._records: dict[int, torch_reader.Record] = {}
        self.add(records)
        self._listed = {} if record_is_checked else listed

    def add(self, records: Iterable[torch_reader.Record]) -> None:
        """Adds records of files that the checkpoint's record may list."""
        for record in records:
            if record.path not in self._covered and len(record.data):
                self._records[record.data.data_ptr()] = record

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raises CheckpointError unless the storages of the tensors are unchanged."""
        self._check_files()
        for tensor in tensors:
            record = self._records.get(tensor.untyped_storage().data_ptr())
            if record is not None:
                torch_reader.verify(record)
                del self._records[record.data.data_ptr()]

    def check_all(self) -> None:
        """Raises CheckpointError unless all bytes are unchanged."""
        self._check_files()
        for record in self._records.values():
            torch_reader.verify(record)
        self._records.clear()

    def _check_files(self) -> None:
        for directory, name, facts in self._listed.values():
            verify({name: facts}, directory)
        self._listed = {}


def verify(wanted: Checksums, directory: Path, beat: Beat = lambda what: None) -> None:
    """Raises CheckpointError for the first file that differs from its record."""
    for name, (size, checksum) in wanted.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: truncated, {path.stat().st_size} of {size} bytes")
        if _checksum(path, beat) != checksum:
            raise CheckpointError(f"{path}: damaged, its checksum is not the one that was recorded")


def _is_entry(name: str, facts: object) -> bool:
    """True if an entry of a record names a file below the directory, with size and checksum."""
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
