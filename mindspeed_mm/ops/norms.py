"""Normalisations computed in fp32 for any input precision, as in the original.

An NPU uses the fused operators; other devices use the `plain_` twins, which also serve as their reference in tests.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mindspeed_mm.ops import ascend


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation (1607.06450) over the last axis, computed in fp32, returned in x's dtype."""
    if x.device.type == "npu":  # aclnnLayerNorm reads 16 bits and computes in fp32: one kernel instead of five
        return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)
    return plain_layer_norm(x, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS normalisation (1910.07467) over the last axis: normalised in fp32, cast back, *then* scaled by the weight."""
    if x.device.type == "npu":
        return ascend.rms_norm(x, weight, eps)
    return plain_rms_norm(x, weight, eps)


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`layer_norm` in operators of every device."""
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` in operators of every device."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight
