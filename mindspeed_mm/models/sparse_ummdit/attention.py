"""Joint attention of video and text, sparse over the video (Skiparse)."""

from collections.abc import Callable

from torch import Tensor, nn

from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.sparse_ummdit.dropout import Dropout, Places, applied
from mindspeed_mm.models.sparse_ummdit.norms import HeadNorm
from mindspeed_mm.ops.attention import RealKeys, attend
from mindspeed_mm.ops.skiparse import join_text, split_text
from mindspeed_mm.parallel.layout import Layout

Operator = Callable[[Tensor, Tensor, Tensor, RealKeys | None], Tensor]


class JointAttention(nn.Module):
    """Joint attention of video and text; video tokens attend only within their Skiparse part.

    Each part attends to the whole text; the text attends to every part and takes the mean. Queries and keys are
    RMS-normalised per head (2302.05442); RoPE rotates those of the video only.
    """

    def __init__(self, config: SparseUMMDiTConfig, parallel: Layout, sparsity: int, group: bool, *, text_output: bool):
        """sparsity, group: the Skiparse pattern of this block. text_output: False omits the text's output projection."""
        super().__init__()
        self.parallel = parallel
        self.operator: Operator | None = None  # in place of `ops.attention.attend`
        self.sparsity = sparsity
        self.group = group
        self.head_dim = config.head_dim
        width, bias = config.hidden_size, config.attention_bias
        self.norm_q = HeadNorm(config.head_dim, config.norm_eps)
        self.norm_k = HeadNorm(config.head_dim, config.norm_eps)
        self.to_q = parallel.column(width, width, bias=bias)
        self.to_k = parallel.column(width, width, bias=bias)
        self.to_v = parallel.column(width, width, bias=bias)
        self.add_k_proj = parallel.column(width, width, bias=bias)
        self.add_v_proj = parallel.column(width, width, bias=bias)
        self.add_q_proj = parallel.column(width, width, bias=bias)
        dropout = Dropout(config.dropout, 1, parallel)
        self.to_out = nn.ModuleList([parallel.row(width, width, bias=True), dropout])
        self.to_add_out = parallel.row(width, width, bias=True) if text_output else None
        self.norm_added_q = HeadNorm(config.head_dim, config.norm_eps)
        self.norm_added_k = HeadNorm(config.head_dim, config.norm_eps)

    def head_norms(self) -> tuple[HeadNorm, ...]:
        """Norms that only process this TP rank's heads."""
        return self.norm_q, self.norm_k, self.norm_added_q, self.norm_added_k

    def forward(
        self,
        video: Tensor,
        text: Tensor,
        rope: tuple[Tensor, Tensor],
        keys: RealKeys | None,
        places: Places | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention on video [S,B,D] and text [L,B,D] (this rank's tokens), returned in the same shapes.

        rope: tables for all S tokens of the video. keys: the real ones of each part, [k*B, S'/k + L], None if all are real
        (see `masks.py`). places: for dropout; None without.
        """
        video_in, text_in, video_out, text_out = (None,) * 4 if places is None else places.around_attention()
        projected = self.parallel.together(video, self.to_q, self.to_k, self.to_v, drops=video_in)
        q, k, v = (self._heads(x) for x in projected)
        projected = self.parallel.together(text, self.add_q_proj, self.add_k_proj, self.add_v_proj, drops=text_in)
        text_q, text_k, text_v = (self._heads(x) for x in projected)
        q, k = self.norm_q(q, rope), self.norm_k(k, rope)
        text_q, text_k = self.norm_added_q(text_q), self.norm_added_k(text_k)

        out = self.attend(self._joint(q, text_q), self._joint(k, text_k), self._joint(v, text_v), keys)
        video, text = split_text(out, self.sparsity, self.group, q.shape[0])
        project, dropout = self.to_out
        video = applied(project, self.parallel.join_heads(video).flatten(2), video_out)
        if places is not None and places.seeds is not None:
            video = dropout(video, places.seeds, places.video_part)
        if self.to_add_out is None:
            return video, None
        return video, applied(self.to_add_out, self.parallel.join_heads(text).flatten(2), text_out)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: RealKeys | None) -> Tensor:
        """The attention operator, [S,B,H,D] each; a subclass may choose another."""
        return attend(q, k, v, keys) if self.operator is None else self.operator(q, k, v, keys)

    def _heads(self, x: Tensor) -> Tensor:
        """[S/CP,B,H*D/TP] -> [S,B,H/(TP*CP),D]."""
        return self.parallel.split_heads(x.unflatten(2, (-1, self.head_dim)))

    def _joint(self, video: Tensor, text: Tensor) -> Tensor:
        """Skiparse parts of the video, each followed by the whole text: [S'/k + L, k*B, H, D]."""
        return join_text(video, text, self.sparsity, self.group)
