"""Locates the bytes of a clip: a file, or a part of an uncompressed tar.

The path `shards/000000.tar@1536+20480/clip.mp4` names the member `clip.mp4`: 20,480 bytes from byte 1,536 of the tar.
Any process can read the member in place, and lists, ledgers and caches store such paths like file names.
"""

import io
import os
import re
import stat as stat_modes
from typing import BinaryIO

from mindspeed_mm.errors import DataError

_MEMBER = re.compile(r"(?s)(.*\.tar)@(\d{1,18})\+(\d{1,18})/.+")


def member_path(tar: str, start: int, size: int, name: str) -> str:
    """Path of a member whose bytes are [start, start + size) of a tar."""
    return f"{tar}@{start}+{size}/{name}"


def place(path: str) -> tuple[str, int, int | None]:
    """(file, first byte, number of bytes or None for the whole file)."""
    found = _MEMBER.fullmatch(path)
    return (found[1], int(found[2]), int(found[3])) if found else (path, 0, None)


def stat(path: str) -> os.stat_result:
    """`os.stat` of the file that holds the bytes. Raises OSError if it is missing."""
    return os.stat(place(path)[0])


def check_file(path: str) -> None:
    """Raises DataError for a folder, pipe or device, since opening a pipe would hang; OSError if nothing is there."""
    mode = stat(path).st_mode
    if not stat_modes.S_ISREG(mode):
        what = "a folder" if stat_modes.S_ISDIR(mode) else "a pipe, socket or device"
        raise DataError(f"{path}: is {what}, not a file")


def for_ffmpeg(path: str) -> str:
    """Name to open with FFmpeg. The prefix `file:` keeps a name with a colon from being read as a protocol."""
    file, start, size = place(path)
    return f"file:{path}" if size is None else f"subfile,,start,{start},end,{start + size},,:{file}"


def open_bytes(path: str) -> BinaryIO:
    """A readable file of exactly these bytes. Raises OSError if they are missing."""
    file, start, size = place(path)
    if size is None:
        return open(file, "rb")
    with open(file, "rb") as stream:
        stream.seek(start)
        content = stream.read(size)
    if len(content) < size:
        raise OSError(f"{file} ends {size - len(content)} bytes before the end of its member")
    return io.BytesIO(content)
