"""Normalisations in fp32, whatever the input's precision, as the original computes them.

On an NPU the fused operators do that inside; elsewhere, and as what they are tested against, the `plain_` twins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mindspeed_mm.ops import ascend


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation (1607.06450) over the last axis: all of it in fp32, then back to x's dtype."""
    if x.device.type == "npu":  # aclnnLayerNorm reads 16 bits and computes in fp32: one kernel instead of five
        return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)
    return plain_layer_norm(x, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS normalisation (1910.07467) over the last axis: normalised in fp32, cast back, *then* scaled by the weight."""
    if x.device.type == "npu":
        return ascend.rms_norm(x, weight, eps)
    return plain_rms_norm(x, weight, eps)


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`layer_norm` in operators that every device has."""
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` in operators that every device has."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight
