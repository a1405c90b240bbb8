"""Tests output folders before minutes are spent on weights: finds full or read-only disks, and files in place of
folders.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from mindspeed_mm import atomic
from mindspeed_mm.errors import ConfigError

_PROBE_BYTES = 1 << 20


def check(folders: Mapping[str, str | Path | None], rank: int) -> None:
    """Creates each folder if needed, writes 1 MiB to it and deletes it again.

    folders: flag -> folder, or None if nothing will be written. Raises ConfigError, naming the flag, for the first
    folder that fails.
    """
    for flag, folder in folders.items():
        if folder is not None:
            _check(flag, Path(folder), rank)


def _check(flag: str, folder: Path, rank: int) -> None:
    probe = folder / f".probe.{rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with atomic.replacing(probe) as file:
                file.write(bytes(_PROBE_BYTES))
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"{flag} {folder}: cannot be written ({reason}); name a folder on a disk that has room and may be written"
        ) from None
