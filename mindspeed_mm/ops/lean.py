"""Elementwise steps of the denoiser with custom gradients, which keep only their inputs and recompute the rest.

Plain autograd keeps every intermediate tensor, in fp32 where the step computes in fp32: half of a block's memory. Each
step here keeps only its inputs (which the linear before it, or the residual, holds anyway) and computes in fp32, as
the original does. If torch.compile traces a block, it fuses the plain formulas and decides what to keep, except for
hints by `recomputed`. On an NPU the fused operators behind `norms` and `rope3d` are used.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mindspeed_mm import types
from mindspeed_mm.ops import norms, rope3d


def _plain(x: Tensor) -> bool:
    return torch.compiler.is_compiling() or x.device.type == "npu"


# ---------------------------------------------------------------------------------------------------------- modulation
# Operators take 16-bit and fp32 tensors together and compute in fp32. With `out` they round to 16 bits themselves, except
# on an NPU. So a copy in fp32 is made only where several operators read it.


def _product(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """a * b in fp32, in the shape and dtype of `like`."""
    if like.device.type == "npu":
        return (a * b).to(like.dtype)
    return torch.mul(a, b, out=torch.empty_like(like))


def _sum_of_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x + a * b in fp32, in the shape and dtype of x."""
    if x.device.type == "npu":
        return (a * b).add_(x).to(x.dtype)
    return torch.addcmul(x, a, b, out=torch.empty_like(x))


def modulated_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm of x [S,B,D] with weight and bias [D], times (1 + scale [B,D]), plus shift [B,D]; returned in x's
    dtype.

    adaLN (2212.09748, section 3.2), computed in fp32.
    """
    if _plain(x):
        return modulate(norms.layer_norm(x, weight, bias, eps), scale, shift)
    return _ModulatedLayerNorm.apply(x, weight, bias, eps, scale.float(), shift.float())


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x [S,B,D] times (1 + scale [B,D]) plus shift [B,D]: in fp32, returned in x's dtype."""
    if torch.compiler.is_compiling():
        return (x.float() * (1 + scale) + shift).to(x.dtype)
    return _Modulated.apply(x, scale.float(), shift.float())


class _ModulatedLayerNorm(torch.autograd.Function):
    """One affine map per sample: gain = weight (1 + scale), offset = bias (1 + scale) + shift."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, scale, shift):
        width, factor = x.shape[-1:], 1 + scale
        gain, offset = weight * factor, torch.addcmul(shift, bias, factor)
        if x.shape[1] == 1:  # the kernel's own affine map suffices for one sample
            y, mean, rstd = torch.native_layer_norm(x.float(), width, gain[0], offset[0], eps)
            y = y.to(x.dtype)
        else:
            y, mean, rstd = torch.native_layer_norm(x.float(), width, None, None, eps)
            y = torch.addcmul(offset, y, gain, out=torch.empty_like(x))
        ctx.save_for_backward(x, weight, bias, factor, gain, mean, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: *grad_outputs
        x, weight, bias, factor, gain, mean, rstd = ctx.saved_tensors
        wide, gradient, width = x.float(), gradient.float(), x.shape[-1:]
        backward = torch.ops.aten.native_layer_norm_backward
        if x.shape[1] == 1:  # the kernel only asks whether there is an offset
            dx, d_gain, d_offset = backward(gradient, wide, width, mean, rstd, gain[0], gain[0], [True, True, True])
            d_weight, d_bias = _product(d_gain, factor[0], weight), _product(d_offset, factor[0], bias)
            d_gain, d_offset = d_gain[None], d_offset[None]
        else:
            normed, _, _ = torch.native_layer_norm(wide, width, None, None, ctx.eps)
            d_gain, d_offset = (gradient * normed).sum(0), gradient.sum(0)
            dx, _, _ = backward(gradient * gain, wide, width, mean, rstd, None, None, [True, False, False])
            d_weight, d_bias = (d_gain * factor).sum(0).to(weight.dtype), (d_offset * factor).sum(0).to(bias.dtype)
        d_scale = torch.addcmul(d_gain * weight, d_offset, bias)
        return dx.to(x.dtype), d_weight, d_bias, None, d_scale, d_offset


class _Modulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift):
        factor = 1 + scale
        ctx.save_for_backward(x, factor)
        return (x * factor).add_(shift).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: *grad_outputs
        x, factor = ctx.saved_tensors
        wide = gradient.float()
        return _product(gradient, factor, x), (wide * x).sum(0), wide.sum(0)


def gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate [B,D] * update, both [S,B,D]: in fp32, returned in x's dtype."""
    if torch.compiler.is_compiling():
        return (x.float() + gate * update.float()).to(x.dtype)
    return _Gated.apply(x, gate.float(), update)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, update):
        ctx.save_for_backward(gate, update)
        return _sum_of_product(x, gate, update)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: *grad_outputs
        gate, update = ctx.saved_tensors
        return gradient, (gradient.float() * update).sum(0), _product(gradient, gate, update)


# --------------------------------------------------------------------------------------------------- queries and keys


def normed_rotated(x: Tensor, weight: Tensor, eps: float, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    """Queries or keys x [S,B,H,D]: RMS norm with weight [D], then RoPE, if any, by tables [S,1,1,D]; in x's dtype."""
    if _plain(x):
        x = norms.rms_norm(x, weight, eps)
        return x if rope is None else rope3d.rotate(x, *rope)
    return _NormedRotated.apply(x, weight, eps, *(rope or (None, None)))


class _NormedRotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, cos, sin):
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale, cos, sin)
        if cos is None:
            return _product(wide * scale, weight, x)
        return _rotated(wide.mul(scale).mul_(weight), cos, sin).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: *grad_outputs
        x, weight, scale, cos, sin = ctx.saved_tensors
        gradient = gradient.float() if cos is None else _rotated(gradient.float(), cos, sin, turn=-1)
        normed = x * scale
        d_weight = (gradient * normed).sum((0, 1, 2))
        gradient = gradient * weight
        along = (gradient * normed).mean(-1, keepdim=True)
        dx = gradient.addcmul_(normed, along, value=-1)
        return _product(dx, scale, x), d_weight.to(weight.dtype), None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, turn: int = 1) -> Tensor:
    """`rope3d.rotate` for an fp32 tensor, without its copy of the halves. turn: -1 rotates back."""
    out, start = x * cos, 0
    for dim in rope3d.axis_dims(x.shape[-1]):
        first, second = slice(start, start + dim // 2), slice(start + dim // 2, start + dim)
        out[..., first].addcmul_(x[..., second], sin[..., first], value=-turn)
        out[..., second].addcmul_(x[..., first], sin[..., second], value=turn)
        start += dim
    return out


# --------------------------------------------------------------------------------------------------------- feed-forward

_GELU_1 = 2 * math.sqrt(2 / math.pi)
_GELU_3 = 0.044715 * _GELU_1


def gelu(x: Tensor, approximate: str) -> Tensor:
    """GELU (1606.08415) in fp32, returned in x's dtype; approximate: "tanh" or "none"."""
    if torch.compiler.is_compiling() and approximate == "tanh":
        # 1 + tanh(u) = 2 sigmoid(2u): CPU compilers make exp faster than tanh.
        wide = x.float()
        return (wide * torch.sigmoid(wide * (_GELU_1 + _GELU_3 * wide * wide))).to(x.dtype)
    if _plain(x):
        return F.gelu(x.float(), approximate=approximate).to(x.dtype)
    return F.gelu(x, approximate=approximate)  # torch's 16-bit kernels compute in fp32 and round once


def recomputed(on: bool, function: Callable, *arguments: Tensor) -> tuple[Tensor, AbstractContextManager]:
    """`recomputed_all` of one function."""
    (result,), again = recomputed_all(on, (function, arguments))
    return result, again


def recomputed_all(on: bool, *calls: tuple[Callable, Sequence[Tensor]]) -> tuple[list[Tensor], AbstractContextManager]:
    """Returns the result of each call function(*arguments), and a context. Inside the context, an operator that would
    keep such a result for its backward pass keeps the arguments instead, and calls the function again; results below
    `types.LEAST_RECOMPUTED_BYTES` are kept: to make one again, hooks run for every tensor that the operators after it keep.

    Use it for cheap functions with contiguous results whose arguments are kept anyway. With `on` false these are plain
    calls. Do not use it inside a checkpointed function (`parallel/recompute.py`), which would then hold the arguments.
    When a compiler traces the calls, the functions are checkpointed instead.
    """
    if on and torch.compiler.is_compiling():
        results = [checkpoint(function, *arguments, use_reentrant=False) for function, arguments in calls]
        return results, contextlib.nullcontext()
    results = [function(*arguments) for function, arguments in calls]
    again = {  # where a result lies -> how to make it again
        result.data_ptr(): _Again(result.numel(), function, tuple(argument.detach() for argument in arguments))
        for result, (function, arguments) in zip(results, calls, strict=True)
        if on and result.nbytes >= types.LEAST_RECOMPUTED_BYTES
    }
    if not again:
        return results, contextlib.nullcontext()

    def pack(tensor: Tensor):
        call = again.get(tensor.data_ptr())
        if call is not None and tensor.numel() == call.numbers and tensor.is_contiguous():
            call.wanted += 1
            return tensor.shape, call  # a linear keeps its input as a matrix
        return tensor

    def unpack(kept):
        if isinstance(kept, tuple):
            shape, call = kept
            return call().view(shape)
        return kept

    return results, saved_tensors_hooks(pack, unpack)


class _Again:
    """A result that several operators want again, made once for all and held until the last of them has it."""

    def __init__(self, numbers: int, function: Callable, arguments: tuple[Tensor, ...]):
        self.numbers = numbers
        self.wanted = 0
        self._call = function, arguments
        self._made: Tensor | None = None

    def __call__(self) -> Tensor:
        made, self.wanted = self._made, self.wanted - 1
        if made is None:
            function, arguments = self._call
            with torch.no_grad():
                made = function(*arguments)
        self._made = made if self.wanted > 0 else None
        return made
