"""Writes files atomically, and reads files without running code in them."""

from collections.abc import Callable
from pathlib import Path

import torch

from mindspeed_mm import atomic
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, torch_reader


def save(state: object, path: Path, beat: Callable[[str], None] = lambda what: None) -> None:
    """torch.save, atomically. beat: called after each part that is on the disk."""
    with atomic.replacing(path, beat) as file:
        torch.save(state, file)


def open_mapped(path: Path) -> tuple[dict, list[torch_reader.Record]]:
    """Content of a torch file and the records that hold its tensors; reads only names and shapes."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    content, records = torch_reader.read(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a dict")
    return content, records


OpenState = Callable[[Path], tuple[dict, list[torch_reader.Record]]]  # as open_mapped


def load(path: Path, record_is_checked: bool = False, open_state: OpenState = open_mapped) -> dict:
    """Content of a torch file, memory-mapped on the CPU; tensors are compared with the available checksums.

    record_is_checked: True if the checkpoint's record has already been compared with the files that it lists.
    open_state: opens the file; a caller that has opened it already passes one that keeps it.
    """
    content, records = open_state(path)
    integrity.Proof([path], records, record_is_checked).check_all()
    return content
