"""Norm layers with the original's parameter names.

Each reads its weights in its own forward pass alone, where hooks of a module, such as offloading, have them ready.
"""

import torch
from torch import Tensor, nn

from mindspeed_mm.ops import norms
from mindspeed_mm.ops.lean import modulate, modulated_layer_norm, normed_rotated


class LayerNorm(nn.Module):
    """Affine layer norm over the last axis, in fp32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """x [...,D] normed; with scale and shift [B,D] of the condition, x [S,B,D] modulated too."""
        if scale is None or shift is None:
            return norms.layer_norm(x, self.weight, self.bias, self.eps)
        return modulated_layer_norm(x, self.weight, self.bias, self.eps, scale, shift)


class RMSNorm(nn.Module):
    """RMS norm over the last axis, with a weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """As `LayerNorm.forward`."""
        x = norms.rms_norm(x, self.weight, self.eps)
        return x if scale is None or shift is None else modulate(x, scale, shift)


class HeadNorm(RMSNorm):
    """RMS norm of the heads of queries or keys."""

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x [S,B,H,D] normed, then rotated by RoPE's tables [S,1,1,D], if any."""
        return normed_rotated(x, self.weight, self.eps, rope)


NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}
