"""Skiparse: attention among every k-th token (Open-Sora Plan report, 2412.00131, section 2.2.2).

A sequence of S tokens becomes k shorter ones, on the batch axis, ordered (part, batch). Two patterns alternate:
- single skip: tokens p, p+k, p+2k, ... belong together;
- group skip: of every k*k tokens, the p-th k neighbours belong together.
Lengths that are not multiples of k*k are padded at the end; the padding is hidden from attention as keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def padding(length: int, k: int) -> int:
    """Number of tokens appended so that k parts of both patterns have one length."""
    return -length % (k * k)


def skip(x: Tensor, k: int, group: bool) -> Tensor:
    """x [S,B,...] -> [S'/k, k*B, ...], S' = S padded with zeros to a multiple of k*k."""
    if k == 1:
        return x
    length, batch, *rest = x.shape
    extra = padding(length, k)
    if extra:
        x = F.pad(x, (0, 0) * (x.ndim - 1) + (0, extra))
    if group:
        x = x.reshape(-1, k, k, batch, *rest).transpose(1, 2)  # [n, m, k, B] -> [n, k, m, B], the part is m
        return x.reshape(-1, k * batch, *rest)
    return x.reshape(-1, k * batch, *rest)


def unskip(x: Tensor, k: int, group: bool, length: int) -> Tensor:
    """The inverse of `skip`: [S'/k, k*B, ...] -> [S,B,...] with S = length."""
    if k == 1:
        return x
    parts, batch, rest = x.shape[0], x.shape[1] // k, x.shape[2:]
    if group:
        x = x.reshape(parts // k, k, k, batch, *rest).transpose(1, 2)
    return x.reshape(parts * k, batch, *rest)[:length]


def skip_keep(keep: Tensor, k: int, group: bool) -> Tensor:
    """A mask [B,S] of real tokens -> [k*B, S'/k], in the order of `skip`; padding is False."""
    return skip(keep.t(), k, group).t()


def join_text(video: Tensor, text: Tensor, k: int, group: bool) -> Tensor:
    """Parts of the video, each followed by the whole text: [S,B,H,D] and [L,B,H,D] -> [S'/k + L, k*B, H, D].

    Like `skip` and a copy of the text per part, but every number is moved once, forward and backward.
    """
    if k == 1:
        return torch.cat((video, text))
    if torch.compiler.is_compiling():
        joint = torch.cat((skip(video, k, group), text.repeat(1, k, 1, 1)))
        return joint.transpose(0, 1).contiguous().transpose(0, 1)
    return _Join.apply(video, text, k, group)


def split_text(joint: Tensor, k: int, group: bool, length: int) -> tuple[Tensor, Tensor]:
    """The inverse of `join_text`: [S'/k + L, k*B, H, D] -> the video [S,B,H,D] with S = length, and the mean of its
    texts [L,B,H,D].
    """
    if k == 1:
        return joint[:length], joint[length:]
    if torch.compiler.is_compiling():
        video, texts = _split(joint, k, group, length)
        return video, texts.mean(1)
    return _Split.apply(joint, k, group, length)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, video, text, k, group):
        ctx.arguments = k, group, video.shape[0]
        return _joined(video, text, k, group)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: *grad_outputs
        video, texts = _split(gradient, *ctx.arguments)
        return video, texts.sum(1), None, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, joint, k, group, length):
        ctx.pattern = k, group
        video, texts = _split(joint, k, group, length)
        return video, texts.mean(1)  # not the sum over k, which may be too large for fp16

    @staticmethod
    def backward(ctx, video, text):  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: *grad_outputs
        k, group = ctx.pattern
        return _joined(video, text / k, k, group), None, None, None


def _joined(video: Tensor, text: Tensor, k: int, group: bool) -> Tensor:
    length, batch, *rest = video.shape
    parts = (length + padding(length, k)) // k
    tokens = parts + text.shape[0]
    joint = video.new_empty(k * batch, tokens, *rest).transpose(0, 1)  # attention prefers a part's tokens side by side
    whole = length - length % (k * k)  # the padded blocks at the end are copied separately: fewer than k * k tokens
    _blocks(joint[: whole // k], k, group).copy_(video[:whole].unflatten(0, (-1, k, k)))
    if whole < length:
        joint[whole // k : parts] = skip(video[whole:], k, group)
    joint[parts:].unflatten(1, (k, batch)).copy_(text[:, None])
    return joint


def _split(joint: Tensor, k: int, group: bool, length: int) -> tuple[Tensor, Tensor]:
    """The video [S,B,...], and each part's text [L,k,B,...]."""
    parts = (length + padding(length, k)) // k
    return unskip(joint[:parts], k, group, length), joint[parts:].unflatten(1, (k, -1))


def _blocks(parts: Tensor, k: int, group: bool) -> Tensor:
    """Parts [n*k, k*B, ...] as a view in token order: [n, k, k, B, ...], blocks of k x k tokens."""
    blocks = parts.unflatten(0, (-1, k)).unflatten(2, (k, -1))
    return blocks.transpose(1, 2) if group else blocks
