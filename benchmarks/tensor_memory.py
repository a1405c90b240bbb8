"""Peak memory of tensors on the meta device, counted operation by operation without computing anything."""

import weakref
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and still alive; `peak` is the largest count.

    Buffers that an operation uses internally are not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = self.compute(func, args, kwargs)
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self._seen:
                self._count(storage)
        return result

    def compute(self, func, args: tuple, kwargs: dict):
        """Result of the operator; a subclass may leave its numbers out."""
        return func(*args, **kwargs)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._seen[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.now -= size
        del self._seen[key]


def _storages(values) -> Iterator[torch.UntypedStorage]:
    """Of all tensors in an operator's arguments or results; torch's own walk over trees takes four times as long."""
    if isinstance(values, torch.Tensor):
        yield values.untyped_storage()
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _storages(value)
    elif isinstance(values, dict):
        yield from _storages(list(values.values()))
