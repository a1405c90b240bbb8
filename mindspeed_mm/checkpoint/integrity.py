"""Checksums of the files of a checkpoint, written beside them by the rank that wrote them."""

import json
import zlib
from pathlib import Path

from mindspeed_mm.checkpoint import files
from mindspeed_mm.errors import CheckpointError

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 24


def write(directory: Path) -> None:
    """Record size and CRC-32 of every file in a directory; called when they are complete."""
    found = {path.name: {"size": path.stat().st_size, "crc32": crc32(path)} for path in _content(directory)}
    files.write_text(json.dumps(found, indent=1), directory / CHECKSUMS)


def verify(directory: Path) -> None:
    """Raise CheckpointError for the first file that is not what was written; directories without checksums pass.

    Checkpoints of other programs have none.
    """
    record = directory / CHECKSUMS
    if not record.is_file():
        return
    try:
        wanted = json.loads(record.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise CheckpointError(f"{record}: is damaged") from None
    for name, facts in wanted.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != facts["size"]:
            raise CheckpointError(f"{path}: truncated, {path.stat().st_size} of {facts['size']} bytes")
        if crc32(path) != facts["crc32"]:
            raise CheckpointError(f"{path}: damaged, its checksum is not the one that was recorded")


def crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _content(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_file() and path.name != CHECKSUMS)
