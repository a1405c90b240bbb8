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
    """True if `attend_packed` can compute with q [S,B,H,D]; else use a mask."""
    width = q.shape[-1]
    return q.dtype in (torch.bfloat16, torch.float16) and width <= _WIDEST_HEAD and width % _HEAD_MULTIPLE == 0


def attend_packed(q: Tensor, k: Tensor, v: Tensor, queries: int, starts: Tensor, keys: int) -> Tensor:
    """Attention within packed samples: q [B*queries,H,D], k and v [U,H,D] -> [B*queries,H,D].

    starts: [B+1] int32 on the device, where each sample's keys begin, and U; a sample has at most `keys`. The host waits
    for nothing.
    """
    kernel = _kernel()
    assert kernel is not None  # see `has_kernel`
    return kernel(q, k, v, begins_of(q, queries), starts, queries, keys)


def begins_of(packed: Tensor, tokens: int) -> Tensor:
    """Where each sample of `tokens` tokens begins in packed [B*tokens,...], and the end: [B+1] int32 on the device."""
    return torch.arange(0, len(packed) + tokens, tokens, dtype=torch.int32, device=packed.device)
