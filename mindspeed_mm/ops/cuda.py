"""CUDA's fused attention over packed keys, behind `attention.py`.

torch's attention takes its fastest kernels (FlashAttention, 2205.14135) only without a mask. With padded keys it would take
a slower one, so the real keys are packed instead. tests/device compares with the plain twin on a card.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_WIDEST_HEAD, _HEAD_MULTIPLE = 256, 8  # of FlashAttention
_LEAST_CAPABILITY = (8, 0)  # Ampere


def _kernel() -> Callable[..., Any] | None:
    """torch's attention of packed sequences; None in a torch before 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def has_kernel(device: torch.device) -> bool:
    """True if a GPU, and this torch, can attend over packed keys."""
    return _kernel() is not None and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def takes(q: Tensor) -> bool:
    """True if `attend_real` can compute with q [S,B,H,D]; else use a mask."""
    width = q.shape[-1]
    return q.dtype in (torch.bfloat16, torch.float16) and width <= _WIDEST_HEAD and width % _HEAD_MULTIPLE == 0


def attend_real(q: Tensor, k: Tensor, v: Tensor, places: Tensor, starts: Tensor) -> Tensor:
    """Attention over some keys: q [S,B,H,D], k and v [L,B,H,D] -> [S,B,H,D].

    places [U], starts [B+1]: see `attention.RealKeys`; all lie on the device, and the host waits for nothing.
    """
    kernel = _kernel()
    assert kernel is not None  # see `has_kernel`
    (queries, batch), keys = q.shape[:2], k.shape[0]
    k, v = (x.flatten(0, 1).index_select(0, places) for x in (k, v))
    begins = torch.arange(0, (batch + 1) * queries, queries, dtype=torch.int32, device=q.device)
    out = kernel(q.transpose(0, 1).flatten(0, 1), k, v, begins, starts, queries, keys)
    return out.unflatten(0, (batch, queries)).transpose(0, 1)
