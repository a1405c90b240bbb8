"""Peak memory of tensors on the meta device, counted operation by operation without computing anything."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and still alive; `peak` is the largest count.

    Buffers that an operation uses internally are not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {self._address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and self._address(x) not in given:
                self._count(x.untyped_storage())
        return result

    @staticmethod
    def _address(x: torch.Tensor) -> int:
        return x.untyped_storage()._cdata

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._seen[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.now -= size
        del self._seen[key]
