"""Tensors whose bytes lie in memory-mapped files: seen as bytes, and given back when they have been read."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from mindspeed_mm.checkpoint.integrity import Proof

# The same numbers on every Linux we run on; Python's mmap module has them for its own mappings only.
_MADV_DONTNEED = 4
_MADV_POPULATE_READ = 22  # since Linux 5.14; an older one says no, and faults the pages in one by one
_MANY_PAGES = 2**17  # bytes; fewer come with one fault
_MARGIN = 2**20  # a page fault maps some of the pages around it as well, 64 KiB or more


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


class MappedFiles:
    """Files that tensors lie in. `release` makes the system forget pages; they are read again if they are used again.

    Without it every page that was ever read counts as memory of this process until it ends. Where there is no
    /proc/self/maps nothing is released.
    """

    def __init__(self, paths: Iterable[Path], tensors: Iterable[Tensor], proof: Proof | None = None):
        """tensors: all of those in the files; they are kept, so that the mappings stay while this object does.

        proof: that the files are what was written; asked for before values are used.
        """
        paths = list(paths)
        self._tensors = list(tensors)
        self._proof = proof or Proof(paths)
        self._ranges = _ranges({os.path.realpath(path) for path in paths})

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raise CheckpointError unless the bytes of the tensors are those that were written, as far as can be known."""
        self._proof.check(tensors)

    def fetch(self, tensor: Tensor) -> None:
        """Map the pages under a tensor all at once; faults of a few pages each cost more than the reading."""
        if tensor.numel() * tensor.element_size() >= _MANY_PAGES:
            self._advise(tensor, 0, _MADV_POPULATE_READ)

    def release(self, tensor: Tensor) -> None:
        """Forget the pages under a tensor, if it lies in one of the files."""
        self._advise(tensor, _MARGIN, _MADV_DONTNEED)

    def _advise(self, tensor: Tensor, margin: int, advice: int) -> None:
        if tensor.numel() == 0:
            return
        at = tensor.data_ptr()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = at + (last + 1) * tensor.element_size()
        for first, stop in self._ranges:
            if first <= at < stop:
                begin = max(first, (at - margin) // mmap.PAGESIZE * mmap.PAGESIZE)
                length = min(stop, end + margin) - begin
                _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), ctypes.c_int(advice))


def _ranges(paths: set[str]) -> list[tuple[int, int]]:
    """Addresses at which files are mapped privately, that is, without a way to write to them."""
    if sys.platform != "linux" or not paths:
        return []
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)  # addresses rights offset device inode path
            if len(fields) == 6 and fields[5] in paths and fields[1].endswith("p"):
                start, stop = fields[0].split("-")
                found.append((int(start, 16), int(stop, 16)))
    return found


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
