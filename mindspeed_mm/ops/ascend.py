"""Ascend's fused operators behind `attention.py`, `norms.py` and `rope3d.py`, and checks of their limits.

The operators are closed libraries and often compute silently wrong results for invalid inputs. So each function here
first checks the limits in torch_npu's documentation (docs/ascend.md lists them), and passes every argument whose
default would be silently wrong, such as the scale of attention. `torch.ops` provides the operators once
platforms/npu.py has imported torch_npu. tests/npu compares each with its plain twin.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_TOKENS = 1_000_000  # per sequence, and per packed batch
_MOST_SEQUENCES = 1024  # per packed batch
_MOST_HEADS, _WIDEST_HEAD = 256, 768
_MASK_ELEMENTS = 1 << 24  # 16 MiB of bool; a 1024x1024 attention of 16 samples
_WIDEST_ROTATED, _MOST_ROTATED = 896, 1000  # channels; batch, and heads


def mask_is_large(q: Tensor, k: Tensor) -> bool:
    """True if a mask of q [S,B,H,D] and k [L,B,H,D] would be a large tensor: then use `attend_packed`."""
    return q.shape[1] * q.shape[0] * k.shape[0] > _MASK_ELEMENTS


def attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """Attention over the keys with keep = True: q [S,B,H,D], k and v [L,B,H,D], keep [B,L] bool or None -> [S,B,H,D].

    Each row of keep needs a True.
    """
    if keep is None:
        return attend_tokens_first(q, k, v)
    masked = (~keep)[:, None, None, :].expand(-1, -1, q.shape[0], -1).contiguous()
    return attend_tokens_first(q, k, v, masked)


def attend_heads_first(q: Tensor, k: Tensor, v: Tensor, masked: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: q [B,H,S,D], k and v [B,H,L,D] -> [B,H,S,D].

    masked: bool [B,1,S,L], [1,1,S,L] or [S,L], **True where a query may not see a key**; None: it sees all. A query that
    sees no key at all has no defined result.
    """
    _check_attention(q, k, v, batch_axes=2)
    if masked is not None:
        _check_mask(masked, q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return _fused(q, k, v, heads=q.shape[1], layout="BNSD", dim=q.shape[-1], atten_mask=masked)


def attend_tokens_first(q: Tensor, k: Tensor, v: Tensor, masked: Tensor | None = None) -> Tensor:
    """The same in the denoiser's layout: q [S,B,H,D], k and v [L,B,H,D] -> [S,B,H,D]."""
    _check_attention(*(x.permute(1, 2, 0, 3) for x in (q, k, v)), batch_axes=2)
    if masked is not None:
        _check_mask(masked, q.shape[1], q.shape[2], q.shape[0], k.shape[0])
    # The operator copies what is not contiguous, so it gets the tensors as they lie in memory.
    samples_first = q.stride(0) < q.stride(1)
    flat = ((x.transpose(0, 1) if samples_first else x).flatten(2) for x in (q, k, v))
    layout = "BSH" if samples_first else "SBH"
    out = _fused(*flat, heads=q.shape[2], layout=layout, dim=q.shape[-1], atten_mask=masked).unflatten(2, q.shape[2:])
    return out.transpose(0, 1) if samples_first else out


def attend_packed(q: Tensor, k: Tensor, v: Tensor, q_ends: Sequence[int], k_ends: Sequence[int]) -> Tensor:
    """Attention within packed sequences: q [T,H,D], k and v [U,H,D] -> [T,H,D].

    q_ends, k_ends: cumulative ends of the sequences, without a leading 0; the last are T and U.
    """
    _check_attention(q, k, v, batch_axes=1)
    q_ends, k_ends = list(q_ends), list(k_ends)
    _check_ends("q_ends", q_ends, q.shape[0])
    _check_ends("k_ends", k_ends, k.shape[0])
    if len(q_ends) != len(k_ends):
        raise ValueError(f"q_ends has {len(q_ends)} sequences, k_ends {len(k_ends)}; give both for the same sequences")
    for index, ((q_start, q_end), (k_start, k_end)) in enumerate(zip(_spans(q_ends), _spans(k_ends), strict=True)):
        if q_end > q_start and k_end == k_start:
            raise ValueError(f"sequence {index} has {q_end - q_start} queries and no key; give it at least one key")
    lengths = {"actual_seq_qlen": q_ends, "actual_seq_kvlen": k_ends}
    return _fused(q, k, v, heads=q.shape[1], layout="TND", dim=q.shape[-1], **lengths)


def _spans(ends: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise([0, *ends]))


def _fused(q: Tensor, k: Tensor, v: Tensor, *, heads: int, layout: str, dim: int, **options) -> Tensor:
    """Calls the operator with the scale, whose default would be 1."""
    return torch.ops.npu.npu_fusion_attention(
        q, k, v, heads, layout, scale=1 / math.sqrt(dim), keep_prob=1.0, sparse_mode=0, **options
    )[0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS normalisation over the last axis, scaled by weight [D]; computed in fp32, returned in x's dtype.

    Rounds to x's dtype once, at the end; the plain twin also rounds before the weight.
    """
    _check_dtype("rms_norm", x)
    if list(weight.shape) != [x.shape[-1]]:
        raise ValueError(f"rms_norm: weight {list(weight.shape)} for x {list(x.shape)}; need [{x.shape[-1]}]")
    return torch.ops.npu.npu_rms_norm(x, weight.to(x.dtype), eps)[0]


def rotate(x: Tensor, cos: Tensor, sin: Tensor, dims: Sequence[int]) -> Tensor:
    """Rotate the halves of each of the parts `dims` of x's channels: x [S,B,H,D], tables [S,1,1,D] fp32.

    Computed in fp32, returned in x's dtype. The tables get no gradient.
    """
    _check_dtype("rotate", x)
    tokens, batch, heads, dim = x.shape
    if cos.shape != (tokens, 1, 1, dim) or sin.shape != cos.shape or {cos.dtype, sin.dtype} != {torch.float32}:
        raise ValueError(
            f"rotate: tables {list(cos.shape)} {cos.dtype} and {list(sin.shape)} {sin.dtype} for x {list(x.shape)}; "
            f"need [{tokens}, 1, 1, {dim}] torch.float32"
        )
    if sum(dims) != dim or any(part % 2 or part >= _WIDEST_ROTATED for part in dims):
        raise ValueError(f"rotate: parts {list(dims)} of {dim} channels; need even ones that add up to it")
    if max(batch, heads) >= _MOST_ROTATED:
        raise ValueError(f"rotate: x {list(x.shape)}; batch and heads must be below {_MOST_ROTATED} each")
    return _Rotate.apply(x, cos, sin, tuple(dims))


class _Rotate(torch.autograd.Function):
    """The gradient is the inverse rotation. The operator's own gradient would also cover the tables."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, dims: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dims = dims
        return _rotated(x, cos, sin, dims)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: *grad_outputs
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin, ctx.dims), None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Calls one operator per part, since it rotates the halves of all channels that it gets."""
    parts = zip(*(table.split(dims, dim=-1) for table in (x.float(), cos, sin)), strict=True)
    turned = [torch.ops.npu.npu_rotary_mul(*part, rotary_mode="half") for part in parts]
    return torch.cat(turned, dim=-1).to(x.dtype)


# --------------------------------------------------------------------------------------------------------------- limits


def _check_dtype(what: str, x: Tensor) -> None:
    if x.dtype not in _DTYPES:
        raise ValueError(f"{what}: {x.dtype}; an NPU computes it in float32, bfloat16 or float16")


def _check_attention(q: Tensor, k: Tensor, v: Tensor, batch_axes: int) -> None:
    """q, k, v: [B,H,S,D] with batch_axes 2, [T,H,D] with 1."""
    _check_dtype("attention", q)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: q {q.dtype}, k {k.dtype}, v {v.dtype}; need one dtype")
    shapes = f"attention: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if k.shape != v.shape:
        raise ValueError(f"{shapes}; k and v need one shape")
    heads, key_heads = q.shape[1], k.shape[1]
    if heads % key_heads or heads > _MOST_HEADS:
        raise ValueError(f"{shapes}; need at most {_MOST_HEADS} heads, and those of k have to divide those of q")
    if q.shape[-1] != k.shape[-1] or q.shape[-1] > _WIDEST_HEAD:
        raise ValueError(f"{shapes}; need one head_dim of at most {_WIDEST_HEAD}")
    if batch_axes == 2 and q.shape[0] != k.shape[0]:
        raise ValueError(f"{shapes}; need one batch size")
    tokens_axis = 2 if batch_axes == 2 else 0
    longest = max(q.shape[tokens_axis], k.shape[tokens_axis])
    if longest > _MOST_TOKENS:
        raise ValueError(f"{shapes}; at most {_MOST_TOKENS} tokens, split the sequence (--context-parallel-size)")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"{shapes}; no axis may be empty")


def _check_mask(masked: Tensor, batch: int, heads: int, queries: int, keys: int) -> None:
    allowed = [[batch, heads, queries, keys], [batch, 1, queries, keys], [1, 1, queries, keys], [queries, keys]]
    if masked.dtype != torch.bool or list(masked.shape) not in allowed:
        raise ValueError(
            f"attention: mask {list(masked.shape)} {masked.dtype}; need torch.bool, True where masked, in one of "
            f"{', '.join(map(str, allowed))}"
        )


def _check_ends(name: str, ends: list[int], tokens: int) -> None:
    if not ends or any(not isinstance(end, int) for end in ends):
        raise ValueError(f"{name} {ends[:4]}: need a list of Python ints, one per sequence")
    if ends != sorted(ends) or ends[0] < 0 or ends[-1] != tokens:
        raise ValueError(
            f"{name} {ends[:4]}...{ends[-1]}: need cumulative ends, without a leading 0, of which the last is the "
            f"number of tokens, {tokens}"
        )
    if len(ends) > _MOST_SEQUENCES:
        raise ValueError(f"{name}: {len(ends)} sequences, an NPU packs at most {_MOST_SEQUENCES}; use smaller batches")
