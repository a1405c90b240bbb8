"""Attention over the real keys of a batch. Masks depend on the key alone, so that no [S,S] mask is built.

NPUs and CUDA use fused operators over packed keys (`ascend.py`, `cuda.py`); other devices use the `plain_` twins, which
also serve as the reference in tests.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mindspeed_mm.ops import ascend, cuda
from mindspeed_mm.types import sent


@dataclasses.dataclass(frozen=True, slots=True)
class RealKeys:
    """Which keys of a batch are real.

    keep: [B,L] bool on the device, a True in each row. For operators that take the real keys alone, one sample after the
    other: places: [U] int64 on the device, of the real keys among all [B*L]; starts: [B+1] int32 on the device, where each
    sample's begin, and U; ends: where they end, on the host. None where `real_keys` did not find them.
    """

    keep: Tensor
    places: Tensor | None = None
    starts: Tensor | None = None
    ends: tuple[int, ...] = ()


def real_keys(keep: Tensor, device: torch.device | None = None) -> RealKeys:
    """The real keys of keep [B,L] bool, for attention on `device` (default: that of keep).

    A sample without a real key attends to all its keys, as with the original's additive -10000. Give keep on the host:
    from a device it is read, which waits for it.
    """
    device = keep.device if device is None else device
    if device.type != "npu" and not (device.type == "cuda" and cuda.has_kernel(device)):
        return RealKeys(sent(with_some(keep), device))
    keep = with_some(keep.cpu())
    places = sent(keep.flatten().nonzero().squeeze(1), device)
    ends = list(itertools.accumulate(keep.sum(1).tolist()))
    keep = sent(keep, device)
    if device.type == "npu":
        return RealKeys(keep, places, ends=tuple(ends))
    # On the device, since a compiler would trace again for other numbers on the host.
    return RealKeys(keep, places, sent(torch.tensor([0, *ends], dtype=torch.int32), device))


def with_some(keep: Tensor) -> Tensor:
    """keep [B,L], all True where a row has no True."""
    return keep | ~keep.any(1, keepdim=True)


def attend(q: Tensor, k: Tensor, v: Tensor, keys: RealKeys | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the real keys: q [S,B,H,D], k and v [L,B,H,D] -> [S,B,H,D].

    keys: None if all are real.
    """
    keep = None if keys is None else keys.keep
    if q.device.type == "npu":
        if keys is None or not ascend.mask_is_large(q, k):
            return ascend.attend(q, k, v, keep)
        keys = keys if keys.places is not None else real_keys(keys.keep)
        q_ends = range(len(q), q.shape[1] * len(q) + 1, len(q))
        return attend_real(q, k, v, keys, functools.partial(ascend.attend_packed, q_ends=q_ends, k_ends=keys.ends))
    if keys is not None and keys.starts is not None and cuda.takes(q):
        packed = functools.partial(cuda.attend_packed, queries=len(q), starts=keys.starts, keys=len(k))
        return attend_real(q, k, v, keys, packed)
    return plain_attend(q, k, v, keep)


def attend_real(
    q: Tensor, k: Tensor, v: Tensor, keys: RealKeys, attend_packed: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """`attend` by an operator for queries [B*S,H,D] and the real keys alone [U,H,D], one sample after the other."""
    assert keys.places is not None  # `real_keys` finds them for such an operator
    samples = q.shape[1], q.shape[0]
    q, k, v = (x.transpose(0, 1).flatten(0, 1) for x in (q, k, v))
    out = attend_packed(q, _Rows.apply(k, keys.places), _Rows.apply(v, keys.places))
    return out.unflatten(0, samples).transpose(0, 1)


class _Rows(torch.autograd.Function):
    """Rows `places` [U] of x, each at most once. torch's own gradient adds the rows to a copy of its zeros."""

    @staticmethod
    def forward(ctx, x, places):
        ctx.save_for_backward(places)
        ctx.rows = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: *grad_outputs
        (places,) = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.rows, *gradient.shape[1:])
        return whole.index_add_(0, places, gradient), None


def attend_frames(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v without a mask: [B,H,S,D] -> [B,H,S,D]."""
    if q.device.type == "npu":
        return ascend.attend_heads_first(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def plain_attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """`attend` in operators of every device. keep: [B,L] bool, a True in each row, or None for all."""
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    mask = None if keep is None else keep[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).permute(2, 0, 1, 3)
