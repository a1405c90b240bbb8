"""Linears whose products run in float8 (2209.05433), forward and backward.

Numbers along a product's sum share a scale: each row of its first operand has one, and each column of the second. So an
outlier coarsens its own row alone. Scales come from the tensor itself in each product; nothing is remembered between steps.
They are powers of two: a number is rounded to the same one whatever its scale, unless it is 2^14 times smaller than the
largest of its row. So ranks that hold parts of a row need not agree on its scale. Sums, weights, and what is kept for the
backward pass stay as they are.
"""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# --fp8-format -> dtypes of weights and activations, of gradients
FORMATS = {
    "e4m3": (torch.float8_e4m3fn, torch.float8_e4m3fn),
    "hybrid": (torch.float8_e4m3fn, torch.float8_e5m2),
}
MULTIPLE = 16  # the kernels take sums and rows of so many numbers, or a multiple

Exchange = Callable[[Tensor], Tensor]


def itself(x: Tensor) -> Tensor:
    return x


@dataclasses.dataclass(frozen=True, slots=True)
class Exchanges:
    """What a linear that is split over ranks exchanges; nothing by default.

    whole: this rank's tokens -> all tokens, of an input. total: a gradient of that input, of which each rank has a part ->
    the sum, for this rank's tokens.
    """

    whole: Exchange = itself
    total: Exchange = itself


def linear(x: Tensor, weight: Tensor, form: str, exchanges: Exchanges = Exchanges()) -> Tensor:
    """x W^T by float8 products: x [S,B,in] and weight [out,in] -> [S',B,out] in x's dtype, S' the tokens of
    `exchanges.whole`. in and out divide by MULTIPLE. form: one of FORMATS.
    """
    return _Linear.apply(x, weight, form, exchanges)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, form: str, exchanges: Exchanges) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form, ctx.exchanges = form, exchanges
        x = exchanges.whole(x)
        dtype, _ = FORMATS[form]
        return product(x.flatten(0, -2), weight, dtype, dtype, x.dtype).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: *grad_outputs
        (x, weight), exchanges = ctx.saved_tensors, ctx.exchanges
        dtype, fine = FORMATS[ctx.form]
        of_x = of_weight = None
        rows = gradient.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            of_x = product(rows, weight.t(), fine, dtype, x.dtype)
            of_x = exchanges.total(of_x.unflatten(0, gradient.shape[:-1]))
        if ctx.needs_input_grad[1]:
            columns = exchanges.whole(x).flatten(0, -2).t()
            of_weight = product(_padded(rows.t()), _padded(columns), fine, dtype, weight.dtype)
        return of_x, of_weight, None, None


def product(a: Tensor, b: Tensor, a_dtype: torch.dtype, b_dtype: torch.dtype, out_dtype: torch.dtype) -> Tensor:
    """a b^T of a [M,K] and b [N,K], both rounded to float8, with a scale for each row; on CUDA out_dtype is bf16, and only
    a may be e5m2.
    """
    a, a_scale = _rounded(a, a_dtype)
    b, b_scale = _rounded(b, b_dtype)
    return torch._scaled_mm(a, b.t(), a_scale, b_scale.t(), out_dtype=out_dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [R,C] over its scale in float8, and the scale [R,1]. Infinite numbers become NaN, which the step then skips."""
    largest = x.abs().amax(1, keepdim=True).float()
    info = torch.finfo(dtype)
    scale = torch.exp2(torch.ceil(torch.log2((largest / info.max).clamp_min(torch.finfo(torch.float32).tiny))))
    return (x / scale).to(dtype).contiguous(), scale


def _padded(x: Tensor) -> Tensor:
    """x [R,C] with zeros, so that C divides by MULTIPLE."""
    return F.pad(x, (0, -x.shape[1] % MULTIPLE))
