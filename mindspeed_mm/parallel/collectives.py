"""Moves activations between layouts, with gradients: sequence parallel (TP) and Ulysses context parallel (CP).

CP follows DeepSpeed-Ulysses (2309.14509): tokens are split over the ranks everywhere but in attention, where heads are.
Gradients of parameters are averaged over data *and* context ranks by Megatron's DDP, while each context rank has only
its tokens' part; so gradients are multiplied by CP where the parts are joined, and divided where the whole is split.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.megatron import (
    all_to_all,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)


def split_tokens(x: Tensor, parallel: ParallelContext) -> Tensor:
    """[S,B,D] on every rank -> this rank's [S/(CP*TP),B,D]; over TP only with sequence parallel."""
    if parallel.context_size > 1:
        x = _ScaleGradient.apply(x, 1 / parallel.context_size)
        x = scatter_to_sequence_parallel_region(x, group=parallel.context)
    if parallel.sequence_parallel:
        x = scatter_to_sequence_parallel_region(x, group=parallel.tensor)
    # A share is a view; the first layer keeps it for its backward pass, and with it all S tokens of every rank.
    return x.clone() if token_parts(parallel) > 1 else x


def join_tokens(x: Tensor, parallel: ParallelContext) -> Tensor:
    """The inverse of `split_tokens`; later steps are computed alike on every rank."""
    if parallel.sequence_parallel:
        x = gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False, group=parallel.tensor)
    if parallel.context_size > 1:
        x = gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False, group=parallel.context)
        x = _ScaleGradient.apply(x, parallel.context_size)
    return x


def shared(condition: Tensor, parallel: ParallelContext) -> Tensor:
    """A condition [B,C] that every rank holds whole, for linears whose outputs are split over TP: each leaves a part of
    its gradient on each rank, and here the parts of all linears are summed."""
    if parallel.tensor_size == 1:
        return condition
    return copy_to_tensor_model_parallel_region(condition, group=parallel.tensor)


def in_parts(condition: Tensor, parallel: ParallelContext) -> Tensor:
    """A `shared` condition, for a function that gives every rank the whole gradient."""
    return condition if parallel.tensor_size == 1 else _ScaleGradient.apply(condition, 1 / parallel.tensor_size)


def sum_of_sample(value: Tensor, parallel: ParallelContext) -> Tensor:
    """Sum of a tensor over the ranks that share a sample's tokens (TP x CP); equal on all of them."""
    if parallel.tensor_size * parallel.context_size > 1:
        value = value.clone()
        dist.all_reduce(value, group=parallel.tensor_and_context)
    return value


def split_heads(x: Tensor, parallel: ParallelContext) -> Tensor:
    """[S/CP,B,H,D] -> [S,B,H/CP,D]: all tokens of a share of the heads."""
    ranks = parallel.context_size
    if ranks == 1:
        return x
    tokens, batch, heads, dim = x.shape
    x = x.reshape(tokens, batch, ranks, heads // ranks, dim).permute(2, 0, 1, 3, 4).contiguous()
    # contiguous before all_to_all: its output buffer takes the strides of its input, which would give wrong gradients
    return all_to_all(parallel.context, x).reshape(ranks * tokens, batch, heads // ranks, dim)


def join_heads(x: Tensor, parallel: ParallelContext) -> Tensor:
    """[S,B,H/CP,D] -> [S/CP,B,H,D]: the inverse of `split_heads`."""
    ranks = parallel.context_size
    if ranks == 1:
        return x
    tokens, batch, heads, dim = x.shape
    x = all_to_all(parallel.context, x.reshape(ranks, tokens // ranks, batch, heads, dim).contiguous())
    return x.permute(1, 2, 0, 3, 4).reshape(tokens // ranks, batch, ranks * heads, dim)


def exchange_halves(x: Tensor, parallel: ParallelContext) -> tuple[Tensor, Tensor]:
    """The result of this rank's half of guidance -> both: (without the prompt, with it). Without gradients."""
    halves = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2)]
    dist.all_gather(halves, x.contiguous(), group=parallel.guidance)
    return halves[0], halves[1]


def of_first_half(value: Tensor, parallel: ParallelContext) -> Tensor:
    """The value of the rank that computes the half without prompt, on both ranks of a pair."""
    value = value.clone()
    dist.broadcast(value, group=parallel.guidance, group_src=0)
    return value


def from_first_rank(value: Any) -> Any:
    """A picklable value of rank 0, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def token_parts(parallel: ParallelContext) -> int:
    """Number of parts into which `split_tokens` cuts a sequence."""
    return parallel.context_size * (parallel.tensor_size if parallel.sequence_parallel else 1)


def check_divisible(tokens: int, what: str, parallel: ParallelContext) -> None:
    """Raises ValueError if a sequence cannot be split evenly over the ranks."""
    parts = token_parts(parallel)
    if tokens % parts:
        sizes = f"context parallel {parallel.context_size}"
        if parallel.sequence_parallel:
            sizes += f" x sequence parallel {parallel.tensor_size}"
        raise ValueError(f"{tokens} {what} do not divide by {parts} ({sizes}); choose another size or layout")


class _ScaleGradient(torch.autograd.Function):
    """Identity in the forward pass; multiplies the gradient by a number."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: *grad_outputs
        return gradient * ctx.factor, None
