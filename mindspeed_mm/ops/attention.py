"""Attention with masks that depend on the key alone: no [S,S] mask is ever built."""

import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys with keep = True.

    q, k, v: [S,B,H,D]; keep: [B,S] bool or None for all. Returns [S,B,H,D]. A sample without any real key sees all of
    its keys, as under the additive -10000 of the original.
    """
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    mask = None if keep is None else (keep | ~keep.any(1, keepdim=True))[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).permute(2, 0, 1, 3)
