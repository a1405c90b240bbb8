"""Attention for sampling with queries and keys in int8 (SageAttention, 2410.02367). It is faster, and another video.

The mean of the real keys is taken off all keys, which changes no softmax. Then blocks of adjacent queries and of adjacent keys are
rounded to 255 steps, each by its own largest number. CUDA takes the package `sageattention`, whose kernels differ by card in
how they round the values, too; other devices use the plain twin, which rounds queries and keys.
"""

import importlib.util

import torch
from torch import Tensor

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.ops import attention, cuda
from mindspeed_mm.ops.attention import RealKeys

PACKAGE = "sageattention"
WIDEST_HEAD = 128
_QUERIES, _KEYS, _STEPS = 128, 64, 127  # of a block; numbers of one sign


def check(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Raises ConfigError if `attend` cannot compute with heads of `head_dim` in `dtype` on a device."""
    reason = ""
    if device.type == "npu":
        reason = "runs on CUDA and, to try, on a CPU"
    elif device.type == "cuda":
        if importlib.util.find_spec(PACKAGE) is None:
            reason = f"needs the package {PACKAGE} (pip install {PACKAGE})"
        elif not cuda.has_kernel(device):
            reason = "needs a GPU of capability 8.0 and torch 2.10"
        elif dtype not in (torch.bfloat16, torch.float16):
            reason = f"needs bf16 or fp16; the denoiser is {dtype}".replace("torch.", "")
        elif head_dim > WIDEST_HEAD:
            reason = f"takes heads of at most {WIDEST_HEAD} channels; the denoiser has {head_dim}"
    if reason:
        raise ConfigError(f"--sage-attention {reason}; leave the option out")


def attend(q: Tensor, k: Tensor, v: Tensor, keys: RealKeys | None) -> Tensor:
    """`attention.attend` in int8: q [S,B,H,D], k and v [L,B,H,D] -> [S,B,H,D]. It has no gradients on CUDA."""
    if q.device.type != "cuda":
        return plain_attend(q, k, v, None if keys is None else keys.keep)
    from sageattention import sageattn, sageattn_varlen  # pyright: ignore[reportMissingImports]  # an extra

    if keys is None:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return sageattn(q, k, v, tensor_layout="NHD").transpose(0, 1)
    queries, starts, longest = len(q), keys.starts, len(k)

    def attend_packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sageattn_varlen(q, k, v, cuda.begins_of(q, queries), starts, queries, longest)

    return attention.attend_real(q, k, v, keys, attend_packed)


def plain_attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """`attend` in operators of every device. keep: [B,L] bool, a True in each row, or None for all."""
    real = torch.ones_like(k[..., :1, :1]) if keep is None else keep.t()[..., None, None].to(k.dtype)
    k = (k - (k * real).sum(0) / real.sum(0)) * real  # padded keys are hidden; as zeros they stretch no block
    return attention.plain_attend(_rounded(q, _QUERIES), _rounded(k, _KEYS), v, keep)


def _rounded(x: Tensor, block: int) -> Tensor:
    """x [S,B,H,D], of which each `block` tokens of a head are rounded together."""
    parts = [
        (part / (scale := part.abs().amax((0, 3), keepdim=True).clamp_min(1e-30) / _STEPS)).round() * scale
        for part in x.float().split(block)
    ]
    return torch.cat(parts).to(x.dtype)
