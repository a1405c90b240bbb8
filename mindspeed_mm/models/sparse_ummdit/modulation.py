"""Norms whose scale, shift and gate come from the condition (adaLN, 2212.09748, section 3.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from mindspeed_mm.models.sparse_ummdit.norms import NORMS
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.linear import ConditionLinear


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x [S,B,D] times (1 + scale [B,D]) plus shift [B,D]: in fp32, returned in x's dtype."""
    return (x.float() * (1 + scale) + shift).to(x.dtype)


class BlockNorm(nn.Module):
    """Norm and modulation of both streams before attention or feed-forward, and the gates after it.

    with_text: whether the text is normalised too; where it is not, it passes unchanged and only its gate is made.
    """

    def __init__(
        self, width: int, condition_width: int, norm_cls: str, eps: float, parallel: ParallelContext, *, with_text: bool
    ):
        super().__init__()
        self.linear = ConditionLinear(condition_width, 6 * width, parallel)
        self.norm = NORMS[norm_cls](width, eps)
        self.norm_enc = NORMS[norm_cls](width, eps) if with_text else None

    def forward(self, video: Tensor, text: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """video [S,B,D], text [L,B,D], condition [B,C] -> both modulated, and both gates [B,D] fp32."""
        parts = self.linear(F.silu(condition)).chunk(6, dim=1)
        shift, scale, gate, text_shift, text_scale, text_gate = parts
        video = _modulate(self.norm(video), scale, shift)
        if self.norm_enc is not None:
            text = _modulate(self.norm_enc(text), text_scale, text_shift)
        return video, text, gate, text_gate


class FinalNorm(nn.Module):
    """Norm and modulation before the output projection."""

    def __init__(self, width: int, condition_width: int, norm_cls: str, eps: float, parallel: ParallelContext):
        super().__init__()
        self.linear = ConditionLinear(condition_width, 2 * width, parallel)
        self.norm = NORMS[norm_cls](width, eps)

    def forward(self, video: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.linear(F.silu(condition)).chunk(2, dim=1)
        return _modulate(self.norm(video), scale, shift)


def gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update: in fp32, returned in x's dtype."""
    return (x.float() + gate * update.float()).to(x.dtype)
