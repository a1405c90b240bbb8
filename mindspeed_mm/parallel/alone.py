"""The layout of a process without groups, in plain torch: for diffusers and whatever else has no megatron-core."""

import torch.nn.functional as F
from torch import Tensor, nn

from mindspeed_mm.types import Drops


class WideLinear(nn.Linear):
    """y = x W^T + b in x's dtype: the condition is fp32 beside 16-bit weights."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class Alone:
    """One process that holds every weight, token and head; see `Layout`."""

    tensor_size = 1
    tensor_rank = 0
    context_size = 1
    context_rank = 0
    sequence_parallel = False

    def column(self, in_features: int, out_features: int, *, bias: bool) -> nn.Linear:
        return nn.Linear(in_features, out_features, bias=bias)

    def row(self, in_features: int, out_features: int, *, bias: bool) -> nn.Linear:
        return nn.Linear(in_features, out_features, bias=bias)

    def condition(self, in_features: int, out_features: int) -> WideLinear:
        return WideLinear(in_features, out_features)

    def shared(self, condition: Tensor) -> Tensor:
        return condition

    def together(self, x: Tensor, *layers: nn.Module, drops: Drops | None = None) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in layers)

    def split_heads(self, x: Tensor) -> Tensor:
        return x

    def join_heads(self, x: Tensor) -> Tensor:
        return x
