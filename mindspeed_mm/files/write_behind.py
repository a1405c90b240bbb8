"""A file written by a thread while the caller reads and joins the next bytes."""

import collections
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_SYNC_EVERY = 2**25  # bytes
_UNDER_WAY = 2  # stretches on their way to the disk
_SMALL = 2**16
# Flags of sync_file_range(2): start writing a range, and wait until it is on the disk.
_START, _WAIT = 2, 7


class WriteBehind:
    """The part of the `open(path, "wb")` interface that the writers here need; one write runs at a time.

    The caller must not change the given bytes until the next `write` or `flush` returns. These calls also raise the
    errors of the disk.
    """

    def __init__(self, path: Path):
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed by close)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint writer")
        self._under_way: Future | None = None
        self._at = 0
        self._synced = 0
        self._stretches: collections.deque[tuple[int, int]] = collections.deque()  # start and size

    def write(self, data) -> int:
        if len(data) < _SMALL:  # a thread would cost more than it saves
            self._write(data, self._at)
        else:
            self.flush()
            self._under_way = self._worker.submit(self._write_and_sync, data, self._at)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        self._at = position
        return position

    def flush(self) -> None:
        """Waits for the current write."""
        waited, self._under_way = self._under_way, None
        if waited is not None:
            waited.result()

    def truncate(self, size: int) -> None:
        self.flush()
        self._file.truncate(size)

    def sync(self) -> None:
        """Waits until all bytes are on the disk."""
        self.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file without raising; `sync` has reported errors before."""
        self._worker.shutdown()
        self._file.close()

    def _write(self, data, at: int) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, at)
            rest, at = rest[written:], at + written

    def _write_and_sync(self, data, at: int) -> None:
        self._write(data, at)
        written = at + len(data) - self._synced
        if written < _SYNC_EVERY or _libc is None:
            return
        # Start the disk now: otherwise it idles until the end, and `sync` waits for the whole file. Also release the
        # memory of written pages: new memory for each page would take longer than the disk.
        _flush_range(self._file.fileno(), self._synced, written, _START)
        self._stretches.append((self._synced, written))
        self._synced += written
        if len(self._stretches) > _UNDER_WAY:
            start, size = self._stretches.popleft()
            _flush_range(self._file.fileno(), start, size)
            os.posix_fadvise(self._file.fileno(), start, size, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def flushed_as_they_grow(directory: Path, pattern: str, beat: Callable[[str], None]) -> Iterator[None]:
    """Sends files that another library writes to the disk as they grow. beat: called after each part on the disk.

    Otherwise the disk would start only when the page cache is full, and the library's final flush would look like a
    hang.
    """
    done, flushed = threading.Event(), collections.Counter()

    def follow() -> None:
        while not done.wait(1.0):
            for path in directory.glob(pattern):
                with contextlib.suppress(OSError), open(path, "rb") as file:  # the library itself sees its errors
                    size = os.fstat(file.fileno()).st_size
                    for start in range(flushed[path], size, _SYNC_EVERY):
                        _flush_range(file.fileno(), start, min(_SYNC_EVERY, size - start))
                        beat("a part of a file")
                    flushed[path] = size

    thread = threading.Thread(target=follow, name="checkpoint follower", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _flush_range(descriptor: int, start: int, size: int, flags: int = _WAIT) -> None:
    """Sends bytes of a file to the disk; with _WAIT also waits for them. fsync reports all errors."""
    if _libc is None:
        return
    arguments = ctypes.c_int(descriptor), ctypes.c_longlong(start), ctypes.c_longlong(size), ctypes.c_uint(flags)
    _libc.sync_file_range(*arguments)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
