"""Counts the bytes that operators beside matrix products and attention read and write."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
_EMPTY = ("empty", "empty_like", "new_empty", "empty_strided")


class MovedBytes(TorchDispatchMode):
    """Sums the sizes of inputs and results of every operator that computes or copies; `total` is the sum.

    Views cost nothing. What an operator reads twice inside counts once.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._opname
        if func.namespace == "aten" and name not in (*_PRODUCTS, *_EMPTY) and "attention" not in name:
            self._add(name, (args, {key: value for key, value in kwargs.items() if key != "out"}), result)
        return result

    def _add(self, name: str, given, result) -> None:
        inputs = [x for x in tree_leaves(given) if isinstance(x, torch.Tensor)]
        known = {x.untyped_storage()._cdata for x in inputs}
        results = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        written = [x for x in results if x.untyped_storage()._cdata not in known]
        if name.endswith("_") and not name.startswith("_"):
            written = inputs[:1]
        if written:
            self.total += sum(x.nbytes for x in (*inputs, *written))
