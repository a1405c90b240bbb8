"""Shared memory in which workers make clips, used again and again.

The kernel zeroes and maps each page of new memory when it is first touched: for a clip of 121x576x1024 (0.9 GB) that takes
as long as decoding a fifth of it. So a worker keeps its buffers, and is told which of them the main process has done with.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class SharedBuffers:
    """A worker's buffers. One is taken by `allocate`, lent by `lend`, and free again after `take_back`."""

    def __init__(self):
        self._free: list[torch.UntypedStorage] = []
        self._taken: list[torch.UntypedStorage] = []
        self._lent: dict[int, torch.UntypedStorage] = {}
        self._numbers = 0

    def allocate(self, shape: Sequence[int]) -> Tensor:
        """An fp32 tensor of any content that another process can map, so that it is not copied on its way there."""
        count = math.prod(shape)
        storage = self._free_one(4 * count) or torch.UntypedStorage._new_shared(4 * count)  # as torch's own workers do
        self._taken.append(storage)
        return torch.empty(0).set_(storage, 0, (count,)).view(*shape)

    def lend(self, tensor: Tensor | None) -> int | None:
        """The number of the buffer that holds `tensor`; None if none does. All others that were taken are free again."""
        number = None
        for storage in self._taken:
            if tensor is not None and storage.data_ptr() == tensor.untyped_storage().data_ptr():
                number = self._numbers
                self._lent[number] = storage
            else:
                self._free.append(storage)
        self._taken.clear()
        self._numbers += 1
        return number

    def take_back(self, numbers: Sequence[int]) -> None:
        """The main process has nothing left that lies in these."""
        self._free += [self._lent.pop(number) for number in numbers]

    def _free_one(self, size: int) -> torch.UntypedStorage | None:
        """The smallest that is large enough. Where all are too small, one is given up for what is to be made instead."""
        self._free.sort(key=torch.UntypedStorage.nbytes)
        for place, storage in enumerate(self._free):
            if storage.nbytes() >= size:
                return self._free.pop(place)
        if self._free:
            self._free.pop()
        return None
