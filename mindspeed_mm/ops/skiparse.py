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
        return torch.cat((skip(video, k, group), text.repeat(1, k, 1, 1)))
    return _JoinText.apply(video, text, k, group)


class _JoinText(torch.autograd.Function):
    @staticmethod
    def forward(ctx, video, text, k, group):
        length, batch, *rest = video.shape
        ctx.pattern, ctx.length = (k, group), length
        parts = (length + padding(length, k)) // k
        joint = video.new_empty(parts + text.shape[0], k * batch, *rest)
        whole = length - length % (k * k)  # the padded blocks behind are copied by themselves: fewer than k * k tokens
        _blocks(joint[: whole // k], k, group).copy_(video[:whole].view(-1, k, k, batch, *rest))
        joint[whole // k : parts] = skip(video[whole:], k, group)
        joint[parts:].view(-1, k, batch, *rest).copy_(text[:, None])
        return joint

    @staticmethod
    def backward(ctx, gradient):
        k, group = ctx.pattern
        batch, parts = gradient.shape[1] // k, (ctx.length + padding(ctx.length, k)) // k
        text = gradient[parts:].unflatten(1, (k, batch)).sum(1)
        return unskip(gradient[:parts], k, group, ctx.length), text, None, None


def _blocks(parts: Tensor, k: int, group: bool) -> Tensor:
    """Parts [n*k, k*B, ...] as a view in the order of the tokens: [n, k, k, B, ...], blocks of k x k tokens."""
    blocks = parts.view(-1, k, k, parts.shape[1] // k, *parts.shape[2:])
    return blocks.transpose(1, 2) if group else blocks
