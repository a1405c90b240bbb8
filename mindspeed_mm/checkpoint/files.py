"""Writing files that are whole or not there, and reading files without running what is in them."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from mindspeed_mm.checkpoint import integrity, torch_reader
from mindspeed_mm.errors import CheckpointError

_STRETCH = 2**28  # bytes


def save(state: object, path: Path, beat: Callable[[str], None] = lambda what: None) -> None:
    """torch.save to a temporary name, flushed to the disk, then renamed. beat: called with each stretch that the disk has."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, _Steady(file, beat))
        _flush(file)
    temporary.replace(path)


def write_text(text: str, path: Path) -> None:
    """A small text file, replaced in one step."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        _flush(file)
    temporary.replace(path)
    flush_directory(path.parent)


def flush_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path, record_is_checked: bool = False) -> dict:
    """What a torch file holds, on the CPU, memory-mapped; its values are compared with the checksums that there are.

    record_is_checked: a file that a checkpoint's record lists has been compared with it already.
    """
    content, records = open_mapped(path)
    integrity.Proof([path], records, record_is_checked).check_all()
    return content


def open_mapped(path: Path) -> tuple[dict, list[torch_reader.Record]]:
    """What a torch file holds, and the records that its tensors lie in: nothing is read but names and shapes."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    content, records = torch_reader.read(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a dict")
    return content, records


class _Steady:
    """A file that goes to the disk as it is written: a flush of all of it at the end would look like a hang."""

    def __init__(self, file, beat: Callable[[str], None]):
        self._file, self._beat = file, beat
        self._unflushed = 0

    def write(self, data) -> int:
        written = self._file.write(data)
        self._unflushed += written
        if self._unflushed >= _STRETCH:
            self.flush()
        return written

    def flush(self) -> None:
        _flush(self._file)
        self._unflushed = 0
        self._beat("a part of a file")


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())
