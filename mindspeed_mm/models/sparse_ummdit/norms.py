"""Norm layers with the original's parameter names."""

import torch
from torch import Tensor, nn

from mindspeed_mm.ops import norms


class LayerNorm(nn.Module):
    """Affine layer norm over the last axis, in fp32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return norms.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """RMS norm over the last axis, with a weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return norms.rms_norm(x, self.weight, self.eps)


NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}
