"""Skiparse: attention among every k-th token (Open-Sora Plan report, 2412.00131, section 2.2.2).

A sequence of S tokens becomes k shorter ones, on the batch axis, ordered (part, batch). Two patterns alternate:
- single skip: tokens p, p+k, p+2k, ... belong together;
- group skip: of every k*k tokens, the p-th k neighbours belong together.
Lengths that are not multiples of k*k are padded at the end; the padding is hidden from attention as keys.
"""

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
