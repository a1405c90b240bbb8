"""Lets the large linears of a denoiser's blocks run their products in float8 (`ops/float8.py`)."""

import dataclasses
import functools

from torch import Tensor, nn

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.ops import float8
from mindspeed_mm.ops.float8 import Exchanges
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.linear import ColumnLinear, RowLinear
from mindspeed_mm.parallel.megatron import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Float8Product:
    """The `Product` of a linear."""

    form: str
    exchanges: Exchanges

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return float8.linear(x, weight, self.form, self.exchanges)


def use_float8(network: nn.Module, form: str, parallel: ParallelContext) -> int:
    """Sets the products of all linears that are split over TP: attention and feed-forward. Returns their number.

    form: see `float8.FORMATS`. Raises ConfigError, with the linear, if a rank's part has sizes that the kernels do not take.
    """
    column, row = Float8Product(form, _of_column(parallel)), Float8Product(form, Exchanges())
    count = 0
    for name, module in network.named_modules():
        if isinstance(module, ColumnLinear):
            _check(name, module.input_size, module.output_size_per_partition, parallel)
            module.product = column
        elif isinstance(module, RowLinear):
            _check(name, module.input_size_per_partition, module.output_size, parallel)
            module.product = row
        else:
            continue
        count += 1
    return count


def _check(name: str, inputs: int, outputs: int, parallel: ParallelContext) -> None:
    if outputs % float8.MULTIPLE or inputs % float8.MULTIPLE:
        raise ConfigError(
            f"--fp8-format: {name} has {inputs} inputs and {outputs} outputs on a rank of TP {parallel.tensor_size}; "
            f"products in float8 need multiples of {float8.MULTIPLE}: lower TP, or leave the option out"
        )


def _of_column(parallel: ParallelContext) -> Exchanges:
    group = parallel.tensor
    if parallel.sequence_parallel:
        return Exchanges(
            whole=functools.partial(gather_from_sequence_parallel_region, group=group),
            total=functools.partial(reduce_scatter_to_sequence_parallel_region, group=group),
        )
    if parallel.tensor_size > 1:
        return Exchanges(total=functools.partial(reduce_from_tensor_model_parallel_region, group=group))
    return Exchanges()
