"""Raw bytes without a copy: those of a file as a storage, those of a tensor as a buffer."""

import typing
from pathlib import Path

import torch
from torch import Tensor


def mapped(path: Path) -> torch.UntypedStorage:
    """A file as a memory-mapped storage; its bytes are read when they are used, and never written."""
    size = path.stat().st_size
    if size == 0:
        return torch.UntypedStorage(0)
    return typing.cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size))


def as_bytes(tensor: Tensor) -> memoryview:
    """Bytes of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
