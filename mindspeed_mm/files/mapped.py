"""Tensors in memory-mapped files: release of their pages after reading."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from mindspeed_mm.files.integrity import Proof
from mindspeed_mm.files.torch_reader import Record

_MADV_DONTNEED = 4  # of madvise on Linux; Python's mmap module applies it to its own mappings only
_MARGIN = 2**20  # bytes; a page fault also maps neighbouring pages, 64 KiB or more


class MappedFiles:
    """Files in which tensors lie. `release` drops their pages from memory; later use reads them again.

    Without it every page that was read counts as memory of this process until its end (merging 0.5 GB: 750 MB at the peak
    instead of 250 MB), and schedulers end processes by that count. Without /proc/self/maps nothing
    is released.
    """

    def __init__(self, paths: Iterable[Path], tensors: Iterable[Tensor], proof: Proof | None = None):
        """tensors: all tensors in the files; kept, so that the mappings last as long as this object.

        proof: checks the files before values are used.
        """
        paths = list(paths)
        self._tensors = list(tensors)
        self._proof = proof or Proof(paths)
        self._paths = {os.path.realpath(path) for path in paths}
        self._ranges = _ranges(self._paths)

    def opened(self, path: Path, records: Iterable[Record], is_new: bool) -> None:
        """Adds records of a file that has just been opened. is_new: the file was not mapped before."""
        self._proof.add(records)
        if is_new:
            self._paths.add(os.path.realpath(path))
            self._ranges = _ranges(self._paths)

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raises CheckpointError if the tensors' bytes differ from those written, as far as checksums tell."""
        self._proof.check(tensors)

    def release(self, tensor: Tensor) -> None:
        """Releases the pages of a tensor if it lies in one of the files."""
        if tensor.numel() == 0:
            return
        at = tensor.data_ptr()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = at + (last + 1) * tensor.element_size()
        for first, stop in self._ranges:
            if first <= at < stop:
                begin = max(first, (at - _MARGIN) // mmap.PAGESIZE * mmap.PAGESIZE)
                length = min(stop, end + _MARGIN) - begin
                _libc.madvise(begin, length, _MADV_DONTNEED)


def _ranges(paths: set[str]) -> list[tuple[int, int]]:
    """Address ranges of privately mapped files, which cannot be written through the mapping."""
    if sys.platform != "linux" or not paths:
        return []
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)  # fields: addresses, rights, offset, device, inode, path
            if len(fields) == 6 and fields[5] in paths and fields[1].endswith("p"):
                start, stop = fields[0].split("-")
                found.append((int(start, 16), int(stop, 16)))
    return found


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
if _libc is not None:
    _libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
