"""Megatron's column- and row-parallel linears with this project's calling convention.

They return a plain tensor and keep Megatron's parameter names (`weight`, `bias` and an empty `_extra_state`). They
state how their parameters are split (`partition.py` reads it). With one TP rank they run as ordinary linears, which
torch.compile can trace. Each may carry adapters (`adapters/`), which add to its output. The weight of a frozen one may be
held in another form (`Held`); then `weight` is None, and each use makes the weight for itself.
Products may be another's (`Product`), such as float8's.
Dropout of adapters needs the places of x's tokens (`Drops`); without them there is none.
"""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mindspeed_mm import types
from mindspeed_mm.parallel.collectives import in_parts
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.megatron import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
    linear_with_frozen_weight,
    linear_with_grad_accumulation_and_async_allreduce,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from mindspeed_mm.types import Drops


class Held(Protocol):
    """A frozen weight in fewer bits, or on the host."""

    @property
    def numbers(self) -> int:
        """Count of the weight's numbers on this rank."""
        ...

    def __call__(self, dtype: torch.dtype) -> Tensor:
        """This rank's part of the weight, on the device."""
        ...


class Product(Protocol):
    """x W^T in another way, forward and backward. For a column linear it exchanges what is exchanged of x and of its
    gradient, for a row linear nothing.
    """

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor: ...


def _no_initialization(weight: Tensor) -> None:
    """Does nothing: `perform_initialization` is off, but Megatron requires a function."""


class ColumnLinear(ColumnParallelLinear):
    """y = x W^T + b with the outputs split over TP: x [S,B,in] -> [S,B,out/TP]; gathers x first under sequence parallel."""

    partition = {"weight": 0, "bias": 0}

    def __init__(self, in_features: int, out_features: int, parallel: ParallelContext, *, bias: bool):
        super().__init__(
            in_features,
            out_features,
            config=parallel.config(),
            init_method=_no_initialization,
            bias=bias,
            gather_output=False,
            tp_group=parallel.tensor,
        )
        self.split = parallel.tensor_size > 1
        self.held: Held | None = None
        self.adapters: nn.Module | None = None
        self.product: Product | None = None

    def forward(self, x: Tensor, drops: Drops | None = None) -> Tensor:
        weight, again = _for_product(self, x.dtype)
        with again:
            if self.product is not None:
                y = _plus(self.product(x, weight), self.bias)
            elif not self.split:
                y = F.linear(x, weight, self.bias)
            elif _gathers_once(self, x):
                y = F.linear(gather_from_sequence_parallel_region(x, group=self.tp_group), weight, self.bias)
            else:
                y = super().forward(x, weight=weight)[0]
        return y if self.adapters is None else self.adapters(x, y, weight, self.bias, drops)


class RowLinear(RowParallelLinear):
    """y = x W^T + b with the inputs split over TP: x [S,B,in/TP] -> [S,B,out], summed over TP (and split along S under
    sequence parallel)."""

    partition = {"weight": 1, "bias": None}

    def __init__(self, in_features: int, out_features: int, parallel: ParallelContext, *, bias: bool):
        super().__init__(
            in_features,
            out_features,
            config=parallel.config(),
            init_method=_no_initialization,
            bias=bias,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=parallel.tensor,
        )
        self.split = parallel.tensor_size > 1
        self.held: Held | None = None
        self.adapters: nn.Module | None = None
        self.product: Product | None = None

    def forward(self, x: Tensor, drops: Drops | None = None) -> Tensor:
        weight, again = _for_product(self, x.dtype)
        with again:
            if self.product is not None:
                y = self._summed(self.product(x, weight)) if self.split else _plus(self.product(x, weight), self.bias)
            elif not self.split:
                y = F.linear(x, weight, self.bias)
            elif self.held is None:
                y = super().forward(x)[0]
            else:
                y = self._summed(self._of_frozen(x, weight))
        return y if self.adapters is None else self.adapters(x, y, weight, self.bias, drops)

    def _of_frozen(self, x: Tensor, weight: Tensor) -> Tensor:
        """This rank's part of Megatron's row linear of a frozen weight; its own takes none as argument."""
        return linear_with_frozen_weight(
            x,
            weight,
            None,
            gradient_accumulation_fusion=False,
            allreduce_dgrad=False,
            sequence_parallel=False,
            tp_group=self.tp_group,
        )

    def _summed(self, y: Tensor) -> Tensor:
        """The output of all ranks' parts."""
        if self.sequence_parallel:
            y = reduce_scatter_to_sequence_parallel_region(y, group=self.tp_group)
        else:
            y = reduce_from_tensor_model_parallel_region(y, group=self.tp_group)
        return _plus(y, self.bias)


def together(x: Tensor, *layers: ColumnLinear, drops: Drops | None = None) -> tuple[Tensor, ...]:
    """Applies several column linears to one input, each [S,B,out/TP].

    Over several TP ranks they form one product, so that the input is gathered, and its gradient reduced, only once. On
    one rank that would only copy the weights. drops: for dropout of their adapters.
    """
    first = layers[0]
    if not first.split:
        return tuple(layer(x, drops) for layer in layers)
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]

    def joined() -> Tensor:
        return torch.cat([weight_of(layer, x.dtype) for layer in layers])

    held = any(layer.held is not None for layer in layers)
    weight, again = made_again(joined) if held else (joined(), contextlib.nullcontext())
    trained = any(layer.held is None and layer.weight.requires_grad for layer in layers)
    linear = linear_with_grad_accumulation_and_async_allreduce if trained else linear_with_frozen_weight
    bias = torch.cat(biases) if biases else None
    with again:
        if first.product is not None:
            y = _plus(first.product(x, weight), bias)
        elif _gathers_once(first, x):
            y = F.linear(gather_from_sequence_parallel_region(x, group=first.tp_group), weight, bias)
        else:
            y = linear(
                x,
                weight,
                bias,
                gradient_accumulation_fusion=False,
                allreduce_dgrad=first.allreduce_dgrad,
                sequence_parallel=first.sequence_parallel,
                tp_group=first.tp_group,
            )
    rows = [layer.output_size_per_partition for layer in layers]
    return tuple(
        part if layer.adapters is None else layer.adapters(x, part, own, layer.bias, drops)
        for layer, part, own in zip(layers, y.split(rows, dim=-1), weight.split(rows), strict=True)
    )


class ConditionLinear(ColumnParallelLinear):
    """y = x W^T + b for a condition x [B,in] that every rank holds whole; the output [B,out] is whole too.

    x comes from `Layout.shared`, which sums its gradient over TP.
    Computed in x's dtype: the condition is fp32 beside bf16 weights, and the original relied on matmul promoting.
    Under sequence parallel each rank uses the output on its own tokens, so its gradient is summed over TP.
    """

    partition = {"weight": 0, "bias": 0}

    def __init__(self, in_features: int, out_features: int, parallel: ParallelContext):
        super().__init__(
            in_features,
            out_features,
            config=parallel.config(split_sequence=False),
            init_method=_no_initialization,
            bias=True,
            gather_output=False,
            skip_bias_add=True,
            disable_grad_reduce=True,
            tp_group=parallel.tensor,
        )
        self.split = parallel.tensor_size > 1
        self._parallel = parallel
        self.held: Held | None = None
        self.adapters: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None  # see the constructor
        weight, again = _for_product(self, x.dtype)
        if weight.dtype != x.dtype:
            # made again in the backward pass: at v1.5 the fp32 copies of the modulation are 4.8 GB / TP
            weight, again = made_again(lambda: self.weight.to(x.dtype))
        with again:
            if self.split:
                y, bias = super().forward(x, weight=weight)
                y = y + bias.to(x.dtype)
            else:
                y = F.linear(x, weight, self.bias.to(x.dtype))
        if self.adapters is not None:
            y = self.adapters(in_parts(x, self._parallel), y, weight, self.bias)
        if not self.split:
            return y
        # Along the first axis, where the parts of one sample need no copies to join.
        whole = gather_from_sequence_parallel_region(
            y.t().contiguous(), tensor_parallel_output_grad=self._parallel.sequence_parallel, group=self.tp_group
        )
        return whole.t().contiguous()


LINEARS = (ColumnLinear, RowLinear, ConditionLinear)


def _gathers_once(layer: ColumnLinear, x: Tensor) -> bool:
    """True if an input is so small that it is gathered once and kept: Megatron gathers it again in the backward pass."""
    return layer.sequence_parallel and x.nbytes * layer.tp_group.size() < types.LEAST_RECOMPUTED_BYTES


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias


def weight_of(layer: Any, dtype: torch.dtype) -> Tensor:
    """This rank's part of a linear's weight: as it is, or in `dtype` where it is held in another form."""
    return layer.held(dtype) if layer.weight is None else layer.weight


def _for_product(layer: Any, dtype: torch.dtype) -> tuple[Tensor, AbstractContextManager]:
    """The same, and the context for products with it: what is made for a product is not kept for the backward pass."""
    if layer.held is None:
        return layer.weight, contextlib.nullcontext()
    return made_again(functools.partial(layer.held, dtype))


def made_again(make: Callable[[], Tensor]) -> tuple[Tensor, AbstractContextManager]:
    """Returns make() and a context. Inside the context, an operator that would keep this tensor for its backward pass
    keeps none and makes it again. Only products belong into the context: what else they keep is kept as it is, also in
    a function that is recomputed.
    """
    made = make()
    if torch.compiler.is_compiling():
        return made, contextlib.nullcontext()
    address, size = made.data_ptr(), made.numel()

    def pack(tensor: Tensor):
        if tensor.data_ptr() == address and tensor.numel() == size:
            return tensor.shape, tensor.stride()  # a product keeps its weight transposed
        return tensor

    def unpack(kept):
        return make().detach().as_strided(*kept) if isinstance(kept, tuple) else kept

    return made, saved_tensors_hooks(pack, unpack)
