"""Writes files atomically: under a temporary name, flushed to the disk, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a binary file that replaces `path` when the block ends; if the block fails, no file is left.

    The temporary name holds the process id, so several processes may write the same file: the last one wins.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Replaces a text file in one step."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
