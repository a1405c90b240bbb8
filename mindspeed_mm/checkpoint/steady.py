"""Sends files to the disk while another library writes them."""

import collections
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_STRETCH = 2**25  # bytes
_WAIT = 7  # flags of sync_file_range(2): start writing a range, and wait until it is on the disk


@contextlib.contextmanager
def flushed_as_they_grow(directory: Path, pattern: str, beat: Callable[[str], None]) -> Iterator[None]:
    """Sends files that another library writes to the disk as they grow. beat: called after each part on the disk.

    Otherwise the disk would start only when the page cache is full, and the library's final flush, minutes long, would
    look like a hang. A range at a time, so that the watchdog hears of each; Python's os has no call for a range.
    """
    done, flushed = threading.Event(), collections.Counter()

    def follow() -> None:
        while not done.wait(1.0):
            for path in directory.glob(pattern):
                with contextlib.suppress(OSError), open(path, "rb") as file:  # the library itself sees its errors
                    size = os.fstat(file.fileno()).st_size
                    for start in range(flushed[path], size, _STRETCH):
                        _flush_range(file.fileno(), start, min(_STRETCH, size - start))
                        beat("a part of a file")
                    flushed[path] = size

    thread = threading.Thread(target=follow, name="checkpoint follower", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _flush_range(descriptor: int, start: int, size: int) -> None:
    """Waits until bytes of a file are on the disk; fsync reports all errors."""
    if _libc is not None:
        range_ = ctypes.c_longlong(start), ctypes.c_longlong(size)
        _libc.sync_file_range(ctypes.c_int(descriptor), *range_, ctypes.c_uint(_WAIT))


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
