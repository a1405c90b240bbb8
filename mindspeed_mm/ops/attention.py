"""Attention with masks that depend on the key alone, so that no [S,S] mask is built.

An NPU uses the fused operator; other devices use the `plain_` twins, which also serve as its reference in tests.
"""

import torch.nn.functional as F
from torch import Tensor

from mindspeed_mm.ops import ascend


def attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys with keep = True.

    q, k, v: [S,B,H,D]; keep: [B,S] bool or None for all. Returns [S,B,H,D]. A sample without a real key attends to all
    its keys, as with the original's additive -10000.
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
    """`attend` in operators of every device; each row of keep needs a True."""
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    mask = None if keep is None else keep[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).permute(2, 0, 1, 3)
