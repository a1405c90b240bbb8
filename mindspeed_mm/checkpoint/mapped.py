"""Tensors whose bytes lie in memory-mapped files: seen as bytes, and given back when they have been read."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

_MADV_DONTNEED = 4  # the same number on every Linux we run on; Python's mmap module has it for its own mappings only
_MARGIN = 2**20  # a page fault maps some of the pages around it as well, 64 KiB or more


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


class MappedFiles:
    """Files that tensors lie in. `release` makes the system forget pages; they are read again if they are used again.

    Without it every page that was ever read counts as memory of this process until it ends. Where there is no
    /proc/self/maps nothing is released.
    """

    def __init__(self, paths: Iterable[Path], tensors: Iterable[Tensor]):
        """tensors: all of those in the files; they are kept, so that the mappings stay while this object does."""
        self._tensors = list(tensors)
        self._ranges = _ranges({os.path.realpath(path) for path in paths})

    def release(self, tensor: Tensor) -> None:
        """Forget the pages under a tensor, if it lies in one of the files."""
        if tensor.numel() == 0:
            return
        at = tensor.data_ptr()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = at + (last + 1) * tensor.element_size()
        for first, stop in self._ranges:
            if first <= at < stop:
                begin = max(first, (at - _MARGIN) // mmap.PAGESIZE * mmap.PAGESIZE)
                length = min(stop, end + _MARGIN) - begin
                _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), ctypes.c_int(_MADV_DONTNEED))


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
