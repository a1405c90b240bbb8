"""A file that goes to the disk while it is written, and leaves the page cache."""

import io
import os
from pathlib import Path

_STRETCH = 2**25  # bytes


class StreamedFile(io.BufferedWriter):
    """A new file for one pass over more bytes than memory holds.

    After each stretch the system is asked to write it and to forget it. Else the disk idles until the final flush, and the
    output takes the memory of the source's pages, which are read next.
    """

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path, "wb"))
        self._sent = 0

    def write(self, data) -> int:
        written = super().write(data)
        at = self.tell()
        if at - self._sent >= _STRETCH and hasattr(os, "posix_fadvise"):  # not on macOS
            # From the stretch before on: the system forgets only what it has written, and that takes a moment.
            start = max(0, self._sent - _STRETCH)
            os.posix_fadvise(self.fileno(), start, at - start, os.POSIX_FADV_DONTNEED)
            self._sent = at
        return written
