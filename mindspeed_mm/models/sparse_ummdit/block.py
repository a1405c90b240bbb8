"""One transformer block over the two streams."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.sparse_ummdit.attention import JointAttention
from mindspeed_mm.models.sparse_ummdit.dropout import Dropout, Places, applied
from mindspeed_mm.models.sparse_ummdit.modulation import BlockNorm
from mindspeed_mm.models.sparse_ummdit.norms import NORMS
from mindspeed_mm.ops.attention import RealKeys
from mindspeed_mm.ops.lean import gated, gelu, recomputed
from mindspeed_mm.parallel.layout import Layout
from mindspeed_mm.parallel.recompute import maybe_recompute
from mindspeed_mm.types import Drops

# `activation_fn` in the config -> `approximate` of torch's gelu.
GELUS = {"gelu": "none", "gelu-approximate": "tanh"}


class Gelu(nn.Module):
    """A linear; `FeedForward` applies the GELU after it."""

    def __init__(self, width: int, inner: int, activation: str, parallel: Layout):
        super().__init__()
        self.approximate = GELUS[activation]
        self.proj = parallel.column(width, inner, bias=False)

    def forward(self, x: Tensor, drops: Drops | None = None) -> Tensor:
        return applied(self.proj, x, drops)

    def activate(self, x: Tensor) -> Tensor:
        """GELU (1606.08415) in fp32."""
        return gelu(x, self.approximate)


class FeedForward(nn.Module):
    """Feed-forward layer: expands four times, GELU, contracts; no biases."""

    def __init__(self, config: SparseUMMDiTConfig, parallel: Layout, dropout_place: int):
        super().__init__()
        width = config.hidden_size
        self.net = nn.ModuleList(
            [
                Gelu(width, 4 * width, config.activation_fn, parallel),
                Dropout(config.dropout, dropout_place, parallel, features_split=True),
                parallel.row(4 * width, width, bias=False),
            ]
        )

    def forward(
        self,
        x: Tensor,
        lean: bool = False,
        places: Places | None = None,
        part: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """lean: recompute GELU's output, four times as wide as x, in the backward pass.

        places: for dropout; None without. part, tokens: places of x's tokens, and of those inside the split linears.
        """
        expand, dropout, contract = self.net
        assert isinstance(expand, Gelu)
        before, after, seeds = None, None, None
        if places is not None:
            assert part is not None and tokens is not None
            before, after, seeds = places.drops(part), places.drops(tokens), places.seeds
        inner = expand(x, before)
        active, again = recomputed(lean, expand.activate, inner)
        with again:
            return applied(contract, active if seeds is None else dropout(active, seeds, tokens), after)


class Block(nn.Module):
    """Modulated attention, then modulated feed-forward, on video [S,B,D] and text [L,B,D].

    The last block of the network has no text output, since it would never be used.
    """

    attention: ClassVar[type[JointAttention]] = JointAttention

    def __init__(self, config: SparseUMMDiTConfig, parallel: Layout, sparsity: int, group: bool, *, last: bool):
        super().__init__()
        self.pattern = (sparsity, group)
        self.last = last
        norm = (config.hidden_size, config.timestep_embed_dim, config.norm_cls, config.norm_eps, parallel)
        own_text_path = config.double_ff and not last
        self.norm1 = BlockNorm(*norm, with_text=True)
        self.attn1 = self.attention(config, parallel, sparsity, group, text_output=not last)
        self.norm2 = BlockNorm(*norm, with_text=own_text_path)
        self.ff = FeedForward(config, parallel, 2)
        self.ff_enc = FeedForward(config, parallel, 3) if own_text_path else None

    def forward(
        self,
        video: Tensor,
        text: Tensor,
        condition: Tensor,
        rope: tuple[Tensor, Tensor],
        keys: RealKeys | None,
        recompute_feed_forward: bool = False,
        lean: bool = True,
        places: Places | None = None,
    ) -> tuple[Tensor, Tensor]:
        """condition: [B,C], after its SiLU. rope, keys, places: see `JointAttention`. recompute_feed_forward: recompute its
        activations in the backward pass.

        lean: recompute cheap intermediate results; for a block that is not recomputed as a whole.
        """
        video, text = _within_half_range(video, self.training), _within_half_range(text, self.training)
        modulation, modulation2 = self.norm1.linear(condition), self.norm2.linear(condition)
        video_in, text_in, gate, text_gate, again = self.norm1(video, text, modulation, lean)
        with again:
            video_out, text_out = self.attended(video_in, text_in, rope, keys, places)
        video = gated(video, gate, video_out)
        if text_out is not None:
            text = gated(text, text_gate, text_out)
        recompute = recompute_feed_forward and self.training
        return maybe_recompute(recompute, self._feed_forward, video, text, modulation2, lean and not recompute, places)

    def attended(
        self,
        video: Tensor,
        text: Tensor,
        rope: tuple[Tensor, Tensor],
        keys: RealKeys | None,
        places: Places | None,
    ) -> tuple[Tensor, Tensor | None]:
        """`attn1`, see there; a subclass may call it in another way."""
        return self.attn1(video, text, rope, keys, places)

    def _feed_forward(
        self, video: Tensor, text: Tensor, modulation: Tensor, lean: bool, places: Places | None
    ) -> tuple[Tensor, Tensor]:
        video, text = _within_half_range(video, self.training), _within_half_range(text, self.training)
        video_in, text_in, gate, text_gate, again = self.norm2(video, text, modulation, lean)
        with again:
            if self.last or self.ff_enc is not None:
                of_video = (places and places.video_part, places and places.video)
                video = gated(video, gate, self.ff(video_in, lean, places, *of_video))
                if self.ff_enc is None:  # the last block
                    return video, text
                of_text = (places and places.text_part, places and places.text)
                return video, gated(text, text_gate, self.ff_enc(text_in, lean, places, *of_text))
        # One feed-forward for both. The text enters it without norm and modulation, as in the original.
        of_both = (places and places.both_part, places and places.both)
        both = self.ff(torch.cat((video_in, text_in)), lean, places, *of_both)
        tokens = video.shape[0]
        return gated(video, gate, both[:tokens]), gated(text, text_gate, both[tokens:])


def _within_half_range(x: Tensor, training: bool) -> Tensor:
    """For fp16 sampling, which overflows in deep blocks: clamps to the finite range, NaN to 0. Other dtypes pass
    unchanged.
    """
    if training or x.dtype != torch.float16:
        return x
    limit = torch.finfo(torch.float16).max
    return x.nan_to_num(nan=0.0, posinf=limit, neginf=-limit)


def skip_join(config: SparseUMMDiTConfig) -> nn.Sequential:
    """Joins a stage's input with its mirror stage's output, [S,B,2D] -> [S,B,D]."""
    width = 2 * config.hidden_size
    norm = nn.Identity() if config.skip_connection_zero_init else NORMS[config.norm_cls](width, config.norm_eps)
    return nn.Sequential(norm, nn.Linear(width, config.hidden_size))
