"""An adapter of one linear: what it adds to the linear's output, on this TP rank.

LoRA (2106.09685) adds scale B A x to y = W x + b. DoRA (2402.09353, section 4) also learns each row's length m:
y = m (W + scale B A) x / |W + scale B A| + b, the length in the denominator being a constant in the backward pass
(section 4.3). B starts at zero, so a fresh adapter changes nothing.

Dropout leaves out some of the inputs of A in training; their places in the whole network decide which (`ops/dropout.py`).

A linear split over TP has split adapters, which exchange tensors of the adapter's rank only. A column linear has a whole
A and the rows of B of its outputs; a row linear has the columns of A of its inputs and a whole B.
"""

from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mindspeed_mm.families.adapters import DOWN, MAGNITUDE, UP, LayerAdapter
from mindspeed_mm.ops import dropout
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.linear import ColumnLinear, ConditionLinear, RowLinear
from mindspeed_mm.parallel.megatron import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from mindspeed_mm.types import Drops


class Branch(nn.Module):
    """An adapter of a linear that every TP rank holds whole; the base of the others.

    Parameters are fp32; products run in the dtype of the activations, as those of the network do.
    """

    partition: ClassVar[dict[str, int | None]] = {}  # see `parallel/partition.py`

    def __init__(self, weight: Tensor, settings: LayerAdapter, parallel: ParallelContext, place: int):
        """weight: [out, in], this rank's part of the linear's. place: distinguishes the dropouts of a network's adapters."""
        super().__init__()
        rank, self.scale, self.dropout = settings.rank, settings.scale, settings.dropout
        self.parallel = parallel
        self.place = place
        rows, columns = weight.shape
        make = {"device": weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.empty(rank, columns, **make))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank, **make))
        self.lora_magnitude_vector = nn.Parameter(torch.empty(rows, **make)) if settings.dora else None

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, drops: Drops | None = None) -> Tensor:
        """The adapter's part of the output, in y's shape. x: the linear's input; y = weight x + bias. drops: places of x;
        None makes no dropout.
        """
        if drops is not None and self.dropout:
            seeds = dropout.derive(drops.seeds, self.place)
            x = dropout.dropout(x, self.dropout, seeds, drops.tokens, self._first_input(x))
        inner = self._joined(F.linear(x, self.lora_A.to(x.dtype)))
        update = F.linear(inner, self.lora_B.to(x.dtype)) * self.scale
        if self.lora_magnitude_vector is None:
            return update
        gain = (self.lora_magnitude_vector / self.lengths(weight)).to(y.dtype)
        plain = y if bias is None else y - bias.to(y.dtype)
        return gain * update + (gain - 1) * plain

    @torch.no_grad()
    def lengths(self, weight: Tensor) -> Tensor:
        """Length of each row of W + scale B A, fp32 [out]: from products of the adapter's rank, without the sum itself.

        weight: as in the constructor.
        """
        weight, down, up = weight.float(), self.lora_A, self.lora_B
        crossed = (weight @ down.T * up).sum(1)  # row of W times row of B A
        squared = (up @ (down @ down.T) * up).sum(1)
        total = torch.linalg.vector_norm(weight, dim=1).square() + 2 * self.scale * crossed + self.scale**2 * squared
        return self._summed(total).clamp_min(torch.finfo(torch.float32).tiny).sqrt()

    def partial(self, weight: Tensor) -> list[nn.Parameter]:
        """Parameters whose gradients must be summed over TP. weight: the linear's."""
        return list(self.parameters()) if getattr(weight, "sequence_parallel", False) else []

    def _first_input(self, x: Tensor) -> int:
        """Place of this rank's first input among all of the linear."""
        return 0

    def _joined(self, inner: Tensor) -> Tensor:
        """A x, for this rank's part of B."""
        return inner

    def _summed(self, over_inputs: Tensor) -> Tensor:
        """A sum over all inputs, from the sum over this rank's."""
        return over_inputs

    def _named(self, *names: str) -> list[nn.Parameter]:
        return [value for name in names if (value := getattr(self, name)) is not None]


class ColumnBranch(Branch):
    """An adapter of a linear whose outputs are split over TP."""

    partition = {DOWN: None, UP: 0, MAGNITUDE: 0}

    def partial(self, weight: Tensor) -> list[nn.Parameter]:
        """Under sequence parallel A has seen only this rank's tokens."""
        return self._named(DOWN) if self.parallel.sequence_parallel else []

    def _joined(self, inner: Tensor) -> Tensor:
        """All tokens under sequence parallel, as the linear gathers them. The gradient is summed over the outputs."""
        if self.parallel.tensor_size == 1:
            return inner
        if self.parallel.sequence_parallel:
            return gather_from_sequence_parallel_region(inner, group=self.parallel.tensor)
        return copy_to_tensor_model_parallel_region(inner, group=self.parallel.tensor)


class ConditionBranch(ColumnBranch):
    """An adapter of a `ConditionLinear`, whose input every rank holds whole."""

    def partial(self, weight: Tensor) -> list[nn.Parameter]:
        return []

    def _joined(self, inner: Tensor) -> Tensor:
        if self.parallel.tensor_size == 1:
            return inner
        return copy_to_tensor_model_parallel_region(inner, group=self.parallel.tensor)


class RowBranch(Branch):
    """An adapter of a linear whose inputs are split over TP."""

    partition = {DOWN: 1, UP: None, MAGNITUDE: None}

    def partial(self, weight: Tensor) -> list[nn.Parameter]:
        """Under sequence parallel B has seen only this rank's tokens."""
        return self._named(UP, MAGNITUDE) if self.parallel.sequence_parallel else []

    def _first_input(self, x: Tensor) -> int:
        return self.parallel.tensor_rank * x.shape[-1]

    def _joined(self, inner: Tensor) -> Tensor:
        """The sum over the inputs; under sequence parallel of this rank's tokens alone."""
        if self.parallel.tensor_size == 1:
            return inner
        if self.parallel.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(inner, group=self.parallel.tensor)
        return reduce_from_tensor_model_parallel_region(inner, group=self.parallel.tensor)

    def _summed(self, over_inputs: Tensor) -> Tensor:
        if self.parallel.tensor_size > 1:
            dist.all_reduce(over_inputs, group=self.parallel.tensor)
        return over_inputs


class Branches(nn.ModuleList):
    """All adapters of a linear; each adds to the linear's own output."""

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, drops: Drops | None = None) -> Tensor:
        total = y
        for branch in self:
            total = total + branch(x, y, weight, bias, drops)
        return total


class PlainLinear(nn.Linear):
    """torch's linear, with adapters. Takes over the parameters of another one."""

    def __init__(self, like: nn.Linear):
        super().__init__(like.in_features, like.out_features, like.bias is not None, device="meta")
        self.weight = like.weight
        self.register_parameter("bias", like.bias)
        self.training = like.training
        self.adapters: nn.Module | None = None

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y if self.adapters is None else self.adapters(input, y, self.weight, self.bias)


KINDS: dict[type[nn.Module], type[Branch]] = {
    ColumnLinear: ColumnBranch,
    RowLinear: RowBranch,
    ConditionLinear: ConditionBranch,
    PlainLinear: Branch,
}
