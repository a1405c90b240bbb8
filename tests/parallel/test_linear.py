"""Linears over TP: what they keep and exchange for the backward pass changes no number."""

import sys
import weakref
from pathlib import Path
from unittest import mock

import pytest
import torch
from ranks import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode

from mindspeed_mm import types
from mindspeed_mm.adapters.attach import attach
from mindspeed_mm.families.adapters import LayerAdapter
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.linear import ColumnLinear, ConditionLinear, together

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from collectives import CollectiveCounter


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


def columns(least_bytes: int, frozen: bool) -> tuple[dict[str, int], list[torch.Tensor]]:
    """Exchanges, outputs and gradients of a column linear, and of two at once, on this rank's tokens."""
    parallel = ParallelContext.start(tensor_size=2, sequence_parallel=True)
    torch.manual_seed(0)
    layers = [ColumnLinear(8, out, parallel, bias=True) for out in (4, 6, 2)]
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.uniform_(parameter)
            parameter.requires_grad_(not frozen)
    x = torch.rand(3, 2, 8, requires_grad=True)
    with (
        mock.patch.object(types, "LEAST_RECOMPUTED_BYTES", least_bytes),
        CollectiveCounter({"tensor": parallel.tensor}) as counter,
    ):
        outputs = [layers[0](x), *together(x, *layers[1:])]
        sum(y.square().sum() for y in outputs).backward()
    counts: dict[str, int] = {}
    for one, count in counter.seen.items():
        counts[one.kind] = counts.get(one.kind, 0) + count
    gradients = [] if frozen else [parameter.grad for layer in layers for parameter in layer.parameters()]
    return counts, [*(y.detach() for y in outputs), x.grad, *gradients]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_small_input_is_gathered_once(frozen):
    again = run_ranks(columns, 2, 0, frozen)
    once = run_ranks(columns, 2, 2**20, frozen)
    for (large, wanted), (small, found) in zip(again, once, strict=True):
        assert large == {"all-gather": 2 if frozen else 4, "reduce-scatter": 2}
        assert small == {"all-gather": 2, "reduce-scatter": 2}
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def modulated(tensor_size: int, adapted: bool) -> tuple[int, torch.Tensor]:
    """All-reduces of a backward pass through three modulations, and the gradient of their condition."""
    parallel = ParallelContext.start(tensor_size=tensor_size, sequence_parallel=tensor_size > 1)
    generator = torch.Generator().manual_seed(0)
    layers = [ConditionLinear(8, 12, parallel) for _ in range(3)]
    for layer in layers:
        weight = torch.rand(12, 8, generator=generator)
        layer.weight.data = weight.chunk(tensor_size)[parallel.tensor_rank].clone()
        torch.nn.init.zeros_(layer.bias)
    if adapted:
        network = torch.nn.Sequential(*layers)
        for branch in attach(network, parallel, dict.fromkeys("012", LayerAdapter(2, 0.5, dora=True))).values():
            branch.lora_A.data = torch.rand(2, 8, generator=generator)
            branch.lora_B.data = torch.rand(12, 2, generator=generator).chunk(tensor_size)[parallel.tensor_rank].clone()
    condition = torch.rand(2, 8, generator=generator).requires_grad_()
    with CollectiveCounter({"tensor": parallel.tensor}) as counter:
        source = parallel.shared(condition)
        # each rank's share of the tokens adds its part to the loss
        loss = sum(layer(source).square().sum() for layer in layers) / tensor_size
        loss.backward()
    return sum(count for one, count in counter.seen.items() if one.kind == "all-reduce"), condition.grad


@pytest.mark.parametrize("adapted", [False, True])
def test_a_conditions_gradient_is_summed_once_for_all_its_linears(adapted):
    ((_, wanted),) = run_ranks(modulated, 1, 1, adapted)
    for all_reduces, found in run_ranks(modulated, 2, 2, adapted):
        assert all_reduces == (4 if adapted else 1)  # an adapter sums its own, of its rank's size
        assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
