"""Writes files atomically, and reads files without running code in them."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, torch_reader

_STRETCH = 2**28  # bytes


def save(state: object, path: Path, beat: Callable[[str], None] = lambda what: None) -> None:
    """torch.save to a temporary name, flush to the disk, rename. beat: called after each part that is on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, _Steady(file, beat))
        _flush(file)
    temporary.replace(path)


def write_text(text: str, path: Path) -> None:
    """Replaces a small text file in one step."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        _flush(file)
    temporary.replace(path)
    flush_directory(path.parent)


def flush_directory(path: Path) -> None:
    """Makes the names in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path, record_is_checked: bool = False) -> dict:
    """Content of a torch file, memory-mapped on the CPU; tensors are compared with the available checksums.

    record_is_checked: True if the checkpoint's record has already been compared with the files that it lists.
    """
    content, records = open_mapped(path)
    integrity.Proof([path], records, record_is_checked).check_all()
    return content


def open_mapped(path: Path) -> tuple[dict, list[torch_reader.Record]]:
    """Content of a torch file and the records that hold its tensors; reads only names and shapes."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    content, records = torch_reader.read(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a dict")
    return content, records


class _Steady:
    """A file that is flushed to the disk while it is written; one flush at the end would look like a hang."""

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
