"""What torch_npu's fused operators compute, from its documentation (torch_npu/_op_plugin_docs.py in the wheel).

Written without a look at our own kernels' callers: plain formulas on CPU tensors, one per operator and one for its
gradient. Arguments have the names of the operator's schema; those that we never use are refused, so that nobody starts
to use them untested.
"""

from collections.abc import Callable

import torch
from torch import Tensor

FUNCTIONS: dict[str, Callable] = {}  # schema name -> reference


def _reference(name: str):
    def add(function: Callable) -> Callable:
        FUNCTIONS[name] = function
        return function

    return add


def _gradients(function: Callable, inputs: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor, ...]:
    """Gradients of function(*inputs), by autograd."""
    with torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, gradient)


# ------------------------------------------------------------------------------------------------------------ attention


@_reference("npu::npu_fusion_attention")
def _fusion_attention(query, key, value, head_num, input_layout, **options):
    out = _attention(query, key, value, head_num, input_layout, **options)
    unused = torch.zeros(0)
    return out, unused, unused, unused, 0, 0, 0  # softmax_max, softmax_sum, reserved, seed, offset, numels


@_reference("npu::npu_fusion_attention_v3")
def _fusion_attention_v3(query, key, value, head_num, input_layout, **options):
    """What F.scaled_dot_product_attention becomes, such as in the text encoders; they run without gradients."""
    out = _attention(query, key, value, head_num, input_layout, **options)
    return (out, *(torch.zeros(0) for _ in range(5)))  # softmax_max, softmax_sum, reserved, seed, offset


@_reference("npu::npu_fusion_attention_grad")
def _fusion_attention_grad(query, key, value, dy, head_num, input_layout, **options):
    options["scale"] = options.pop("scale_value", 1.0)
    for saved in ("softmax_max", "softmax_sum", "softmax_in", "attention_in", "seed", "offset", "numels"):
        options.pop(saved, None)

    def forward(q, k, v):
        return _attention(q, k, v, head_num, input_layout, **options)

    return (*_gradients(forward, (query, key, value), dy), None, torch.zeros(0))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    *,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    keep_prob: float = 1.0,
    sparse_mode: int = 0,
    **rest,
) -> Tensor:
    ignored = {"pre_tockens", "next_tockens", "inner_precise", "gen_mask_parallel", "sync"}  # speed, or of other modes
    extra = {name: value for name, value in rest.items() if name not in ignored and value not in (None, "", 0)}
    assert not extra and keep_prob == 1.0 and sparse_mode in (0, 2), (extra, keep_prob, sparse_mode)
    if sparse_mode == 2:  # causal from the upper left; the mask is one pattern for all sizes
        assert torch.equal(atten_mask.bool(), torch.ones(2048, 2048).triu(1).bool()) and input_layout == "BNSD"
        atten_mask = atten_mask[: query.shape[2], : key.shape[2]]
    if input_layout == "TND":
        assert atten_mask is None
        pairs = zip(
            _parts(query, actual_seq_qlen), _parts(key, actual_seq_kvlen), _parts(value, actual_seq_kvlen), strict=True
        )
        # [N,T,D] of one sequence is [B,N,S,D] of a batch of N with one head
        return torch.cat([_softmax(*(x.transpose(0, 1) for x in part), None, scale).transpose(0, 1) for part in pairs])
    to_bnsd, back = {
        "BNSD": (lambda x: x, lambda x: x),
        "BSND": (lambda x: x.transpose(1, 2), lambda x: x.transpose(1, 2)),
        "BSH": (lambda x: x.unflatten(2, (head_num, -1)).transpose(1, 2), lambda x: x.transpose(1, 2).flatten(2)),
        "SBH": (
            lambda x: x.unflatten(2, (head_num, -1)).permute(1, 2, 0, 3),
            lambda x: x.permute(2, 0, 1, 3).flatten(2),
        ),
    }[input_layout]
    return back(_softmax(to_bnsd(query), to_bnsd(key), to_bnsd(value), atten_mask, scale))


def _parts(x: Tensor, ends: list[int]) -> list[Tensor]:
    """A packed [T,N,D] cut at the cumulative ends of its sequences."""
    return [x[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _softmax(q: Tensor, k: Tensor, v: Tensor, masked: Tensor | None, scale: float) -> Tensor:
    """Attention [...,S,D] without any fused kernel, in fp32. masked: True where a query may not see a key."""
    scores = q.float() @ k.float().transpose(-1, -2) * scale
    if masked is not None:
        scores = scores.masked_fill(masked.bool(), float("-inf"))
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


# ---------------------------------------------------------------------------------------------------------------- norms


@_reference("npu::npu_rms_norm")
def _rms_norm(input, gamma, epsilon=1e-6):
    x = input.float()
    rstd = (x.pow(2).mean(-1, keepdim=True) + epsilon).pow(-0.5)
    return (x * rstd * gamma.float()).to(input.dtype), rstd


@_reference("npu::npu_rms_norm_backward")
def _rms_norm_backward(dy, input, gamma, rstd):
    x, g, scaled = input.float(), dy.float(), dy.float() * gamma.float()
    dx = rstd * (scaled - x * rstd.pow(2) * (scaled * x).mean(-1, keepdim=True))
    dgamma = (g * x * rstd).flatten(0, -2).sum(0)
    return dx.to(input.dtype), dgamma  # dgamma is fp32 whatever gamma is


@_reference("aten::native_layer_norm")
def _layer_norm(input, normalized_shape, weight, bias, eps):
    """As aclnnLayerNorm's operands in the trace: statistics in fp32 for 16-bit inputs too, where the CPU rounds them."""
    axes = tuple(range(-len(normalized_shape), 0))
    x = input.float()
    mean = x.mean(axes, keepdim=True)
    rstd = (x.var(axes, unbiased=False, keepdim=True) + eps).rsqrt()
    out = (x - mean) * rstd
    out = out if weight is None else out * weight.float()
    return (out if bias is None else out + bias.float()).to(input.dtype), mean, rstd


@_reference("aten::native_layer_norm_backward")
def _layer_norm_backward(grad_out, input, normalized_shape, mean, rstd, weight, bias, output_mask):
    """As aclnnLayerNormBackward's: gradients of weight and bias are summed in fp32, then rounded."""
    axes = tuple(range(-len(normalized_shape), 0))
    others = tuple(range(input.dim() - len(normalized_shape)))
    g, normal = grad_out.float(), (input.float() - mean) * rstd
    scaled = g if weight is None else g * weight.float()
    slope = (scaled * normal).mean(axes, keepdim=True)
    dx = rstd * (scaled - scaled.mean(axes, keepdim=True) - normal * slope)
    dtype = input.dtype if weight is None else weight.dtype
    dweight, dbias = ((x.sum(others) if others else x).to(dtype) for x in (g * normal, g))
    found = zip((dx.to(input.dtype), dweight, dbias), output_mask, strict=True)
    return tuple(x if wanted else None for x, wanted in found)


# --------------------------------------------------------------------------------------------------------------- rotary


@_reference("npu::npu_rotary_mul")
def _rotary_mul(input, r1, r2, rotary_mode="half", rotate=None):
    assert rotate is None and rotary_mode == "half", (rotary_mode, rotate)
    first, second = input.float().chunk(2, dim=-1)
    return (input.float() * r1.float() + torch.cat((-second, first), dim=-1) * r2.float()).to(input.dtype)


@_reference("npu::npu_rotary_mul_backward")
def _rotary_mul_backward(grad, input, r1, r2, rotary_mode="half"):
    return _gradients(_rotary_mul, (input, r1, r2), grad)


# ---------------------------------------------------------------------------- operators that torch_npu has made its own


@_reference("npu::npu_format_cast")
def _format_cast(input, acl_format):
    """Flattening gradients asks for the plain layout, ND, which everything here has."""
    assert acl_format == 2, acl_format
    return input


@_reference("aten::matmul_backward")
def _matmul_backward(grad, self, other, mask):
    return _gradients(torch.matmul, (self, other), grad)
