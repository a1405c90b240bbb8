"""Attention with masks that depend on the key alone: no [S,S] mask is ever built.

On an NPU the fused operator does it; elsewhere, and as what that is tested against, the `plain_` twins.
"""

import torch.nn.functional as F
from torch import Tensor

from mindspeed_mm.ops import ascend


def attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys with keep = True.

    q, k, v: [S,B,H,D]; keep: [B,S] bool or None for all. Returns [S,B,H,D]. A sample without any real key sees all of
    its keys, as under the additive -10000 of the original.
    """
    if keep is not None:
        keep = keep | ~keep.any(1, keepdim=True)
    if q.device.type == "npu":
        return ascend.attend(q, k, v, keep)
    return plain_attend(q, k, v, keep)


def attend_frames(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v without a mask: [B,H,S,D] -> [B,H,S,D]."""
    if q.device.type == "npu":
        return ascend.attend_heads_first(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def plain_attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """`attend` in operators that every device has; each row of keep needs a True."""
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    mask = None if keep is None else keep[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).permute(2, 0, 1, 3)
