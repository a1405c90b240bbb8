"""Checksums of the files of a checkpoint: taken by the rank that wrote a file, recorded in one list per checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

from mindspeed_mm.checkpoint import files
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
    files.write_text(json.dumps(found, indent=1), directory / CHECKSUMS)


def read(directory: Path) -> Checksums:
    """What was recorded; nothing for checkpoints of other programs, which record nothing."""
    record = directory / CHECKSUMS
    if not record.is_file():
        return {}
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise CheckpointError(f"{record}: is damaged") from None
    if not isinstance(found, dict) or not all(_is_fact(value) for value in found.values()):
        raise CheckpointError(f"{record}: is damaged, it is no table of sizes and checksums")
    return found


def _is_fact(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


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


def _checksum(path: Path, beat: Beat) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = crc32(block, value)
            beat("checking a part of a file")
    return value
