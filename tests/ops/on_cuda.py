"""CUDA tensors without a card and without memory: which operators a program runs on them, and where the host would wait."""

import traceback

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MEMORY = {"device", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
_VIEWS = {"lift_fresh", "_unsafe_view", "_reshape_alias"}  # beside those that torch calls views


class OnCuda(TorchDispatchMode):
    """Runs operators of CUDA tensors without a card and without memory, others as they are, and notes the former's names.

    Reading such a tensor on the host is an error, and so is a copy to the device that the host would wait for.
    """

    def __init__(self):
        super().__init__()
        self.launched: list[str] = []  # without views and memory; those that torch composes of others are in parts
        self.copied = 0
        self.waited: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        of_cuda = any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs)))
        to_cuda = str(kwargs.get("device", "cpu")).startswith("cuda")
        if not of_cuda and not to_cuda:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name == "_to_copy" and not of_cuda:
            self.copied += 1
            if not kwargs.get("non_blocking"):
                self.waited.append("".join(traceback.format_stack(limit=6)[:-1]))
        if not func.is_view and name not in _MEMORY | _VIEWS:
            self.launched.append(name)
        return func(*args, **kwargs)


def onto_cuda(network: nn.Module) -> None:
    """Gives a network parameters of device "cuda"."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")))
