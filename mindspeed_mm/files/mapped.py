"""Tensors in memory-mapped files: access as bytes, and release of their pages after reading."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from mindspeed_mm.files.integrity import Proof

# Constants of madvise on Linux; Python's mmap module applies them to its own mappings only.
_MADV_DONTNEED = 4
_MADV_POPULATE_READ = 22  # since Linux 5.14; older kernels refuse it and load pages on access
_MANY_PAGES = 2**17  # bytes; a single page fault loads fewer
_MARGIN = 2**20  # bytes; a page fault also maps neighbouring pages, 64 KiB or more


def as_bytes(tensor: Tensor) -> memoryview:
    """Bytes of a contiguous CPU tensor, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


class MappedFiles:
    """Files in which tensors lie. `release` drops their pages from memory; later use reads them again.

    Without it every page that was read counts as memory of this process until its end. Without /proc/self/maps nothing
    is released.
    """

    def __init__(self, paths: Iterable[Path], tensors: Iterable[Tensor], proof: Proof | None = None):
        """tensors: all tensors in the files; kept, so that the mappings last as long as this object.

        proof: checks the files before values are used.
        """
        paths = list(paths)
        self._tensors = list(tensors)
        self._proof = proof or Proof(paths)
        self._ranges = _ranges({os.path.realpath(path) for path in paths})

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raises CheckpointError if the tensors' bytes differ from those written, as far as checksums tell."""
        self._proof.check(tensors)

    def fetch(self, tensor: Tensor) -> None:
        """Maps all pages of a tensor at once; faults of a few pages each cost more than the reading."""
        if tensor.numel() * tensor.element_size() >= _MANY_PAGES:
            self._advise(tensor, 0, _MADV_POPULATE_READ)

    def release(self, tensor: Tensor) -> None:
        """Releases the pages of a tensor if it lies in one of the files."""
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
