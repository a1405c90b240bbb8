"""Writing files that are whole or not there, and reading files without running what is in them."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import torch

from mindspeed_mm.checkpoint import trusted
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


def load(path: Path) -> dict:
    """A torch file on the CPU, memory-mapped, with tensors and plain values only."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with trusted.classes(path):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values ({reason})") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path}: cannot be read, it is truncated or not a torch file ({reason})") from None


def _is_zip(path: Path) -> bool:
    """Whether the file is in torch's zip format, which can be memory-mapped; older ones cannot."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


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
