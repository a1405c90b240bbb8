"""Norms with scale, shift and gate from the condition (adaLN, 2212.09748, section 3.2)."""

from contextlib import AbstractContextManager

from torch import Tensor, nn

from mindspeed_mm.models.sparse_ummdit.norms import NORMS
from mindspeed_mm.ops.lean import recomputed
from mindspeed_mm.parallel.layout import Layout


class BlockNorm(nn.Module):
    """Norm and modulation of both streams before attention or feed-forward, and the gates after it.

    with_text: True also normalises the text; otherwise it passes unchanged and only gets a gate.
    """

    def __init__(
        self, width: int, condition_width: int, norm_cls: str, eps: float, parallel: Layout, *, with_text: bool
    ):
        super().__init__()
        self.linear = parallel.condition(condition_width, 6 * width)
        self.norm = NORMS[norm_cls](width, eps)
        self.norm_enc = NORMS[norm_cls](width, eps) if with_text else None

    def forward(
        self, video: Tensor, text: Tensor, modulation: Tensor, lean: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, AbstractContextManager]:
        """video [S,B,D], text [L,B,D], modulation [B,6D] of `linear` -> both modulated, and both gates [B,D] fp32.

        Also returns a context for the linears of the modulated video: with `lean` they recompute it in the backward
        pass.
        """
        shift, scale, gate, text_shift, text_scale, text_gate = modulation.chunk(6, dim=1)
        normed, again = recomputed(lean, self.norm, video, scale, shift)
        if self.norm_enc is not None:
            text = self.norm_enc(text, text_scale, text_shift)
        return normed, text, gate, text_gate, again


class FinalNorm(nn.Module):
    """Norm and modulation before the output projection."""

    def __init__(self, width: int, condition_width: int, norm_cls: str, eps: float, parallel: Layout):
        super().__init__()
        self.linear = parallel.condition(condition_width, 2 * width)
        self.norm = NORMS[norm_cls](width, eps)

    def forward(self, video: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.linear(condition).chunk(2, dim=1)
        return self.norm(video, scale, shift)
