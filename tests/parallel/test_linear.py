"""Linears over TP: the modulation's keeps no second copy of its weights for the backward pass."""

import weakref

import pytest
import torch
from ranks import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode

from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.linear import ConditionLinear


class Casts(TorchDispatchMode):
    """Notes the tensors that casts make."""

    def __init__(self):
        super().__init__()
        self.made: list[weakref.ref] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.made.append(weakref.ref(result))
        return result

    def alive(self) -> list[torch.Tensor]:
        return [tensor for made in self.made if (tensor := made()) is not None]


def casts_and_gradients(tensor_size: int, sequence_parallel: bool) -> tuple[int, int, bool]:
    """Cast tensors, those with as many numbers as the weights that live on behind the forward pass, and whether the
    gradients are those of a cast weight, bit for bit.
    """
    parallel = ParallelContext.start(tensor_size=tensor_size, sequence_parallel=sequence_parallel)
    torch.manual_seed(0)
    linear = ConditionLinear(32, 64, parallel).bfloat16()
    with torch.no_grad():
        linear.weight.uniform_(-1, 1)
        linear.bias.uniform_(-1, 1)
    x = torch.rand(2, 32, requires_grad=True)
    with Casts() as casts:
        y = linear(x)
    wide = sum(tensor.numel() >= linear.weight.numel() for tensor in casts.alive())
    y.square().sum().backward()
    weight = linear.weight.detach().float().requires_grad_()
    mine = torch.nn.functional.linear(x.detach(), weight, linear.bias.detach().float())
    first = mine.shape[1] * parallel.tensor_rank
    mine.backward(2 * y.detach()[:, first : first + mine.shape[1]] * (tensor_size if sequence_parallel else 1))
    return len(casts.made), wide, torch.equal(linear.weight.grad, weight.grad.bfloat16())


@pytest.mark.parametrize(("tensor_size", "sequence_parallel"), [(1, False), (2, False), (2, True)])
def test_the_modulation_keeps_no_wide_copy_of_its_weights(tensor_size, sequence_parallel):
    for casts, wide, equal in run_ranks(casts_and_gradients, tensor_size, tensor_size, sequence_parallel):
        assert casts >= 2  # weight and bias
        assert wide == 0
        assert equal
