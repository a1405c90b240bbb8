"""Describes how a network's parameters are split over TP: read from its layers, never from lists of names."""

import zlib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.megatron import set_tensor_model_parallel_attributes
from mindspeed_mm.parallel.seeds import generator

_MANY = 10_000_000  # numbers, which one thread draws in a tenth of a second
_DRAWN_AT_ONCE = 4  # whole parameters in memory; v1.5's largest has 151 MB


def partition_dims(module: nn.Module) -> dict[str, int | None]:
    """The dimension of each parameter that is split over TP, by name; None if every rank holds all of it."""
    dims: dict[str, int | None] = {}
    for prefix, layer in module.named_modules():
        split = getattr(type(layer), "partition", {})  # the linears of `linear.py` define it; nothing else is split
        for name, _ in layer.named_parameters(recurse=False):
            dims[f"{prefix}.{name}" if prefix else name] = split.get(name)
    return dims


def shard(full: Tensor, dim: int | None, parallel: ParallelContext) -> Tensor:
    """This TP rank's part of a whole parameter."""
    if dim is None or parallel.tensor_size == 1:
        return full
    if full.shape[dim] % parallel.tensor_size:
        raise ValueError(f"dimension {dim} of {list(full.shape)} does not divide by TP {parallel.tensor_size}")
    return full.chunk(parallel.tensor_size, dim)[parallel.tensor_rank]


def full_shape(shape: Sequence[int], dim: int | None, tensor_size: int) -> tuple[int, ...]:
    """Shape of the whole parameter if a TP rank holds `shape`."""
    return tuple(size * tensor_size if axis == dim else size for axis, size in enumerate(shape))


def mark(module: nn.Module, partial_gradients) -> None:
    """Marks for megatron-core the parameters that are split, and those with partial gradients on each TP rank.

    A gradient norm counts a parameter that is not split only on TP rank 0; the engine sums the partial gradients.
    Call this when the parameters have their final storage: leaving the meta device creates new ones.
    """
    for name, dim in partition_dims(module).items():
        parameter = module.get_parameter(name)
        if not hasattr(parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(parameter, dim is not None, -1 if dim is None else dim, 1)
    for parameter in partial_gradients:
        parameter.sequence_parallel = True  # megatron-core's name for it


def fill(module: nn.Module, draw, seed: int, parallel: ParallelContext, only: Collection[str] | None = None) -> None:
    """Initialises every parameter from its own generator, seeded by its name: the same weights at every layout.

    draw(name, full, generator) fills a whole fp32 CPU tensor; each rank keeps its part. only: names; None for all.
    """

    @torch.no_grad()
    def fill_one(name: str) -> None:
        parameter, dim = module.get_parameter(name), dims[name]
        full = torch.empty(full_shape(parameter.shape, dim, parallel.tensor_size), dtype=torch.float32)
        draw(name, full, generator(seed, zlib.crc32(name.encode())))
        parameter.copy_(shard(full, dim, parallel))

    dims = partition_dims(module)
    names = [name for name in dims if only is None or name in only]
    if sum(module.get_parameter(name).numel() for name in names) < _MANY:
        for name in names:
            fill_one(name)
        return
    with ThreadPoolExecutor(_DRAWN_AT_ONCE) as pool:  # torch draws without Python's lock
        for _ in pool.map(fill_one, names):
            pass
