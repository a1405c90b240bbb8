"""Dropout (1207.0580) by address: whether a number is dropped follows from where it stands, and from nothing else.

Torch's generators count draws, so that another split of an activation over ranks, or one draw more before, gives another
mask. Here a hash of (seed, token, feature) decides. Each rank computes the mask of what it holds, and recomputation in the
backward pass or a resumed run computes the same one.
"""

import torch
from torch import Tensor

# lowbias32, two rounds, of the hash prospector (https://github.com/skeeto/hash-prospector): 32 bits, all of which depend on
# all bits of the input. Both factors are below 2^31, so that products stay within int64 on every device.
_FACTORS = (0x21F0AAAD, 0x735A2D97)
_BITS = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """A hash of each number: int64 in [0, 2^32) -> int64 in [0, 2^32)."""
    x = x ^ (x >> 16)
    x = (x * _FACTORS[0]) & _BITS
    x = x ^ (x >> 15)
    x = (x * _FACTORS[1]) & _BITS
    return x ^ (x >> 15)


def derive(seeds: Tensor, place: int) -> Tensor:
    """Seeds for one of the places that share `seeds`: [B] int64 in [0, 2^32) -> the same; place: in [0, 2^32)."""
    return mix(seeds ^ mix(torch.full_like(seeds, place)))


@torch.no_grad()
def kept(seeds: Tensor, tokens: Tensor, features: Tensor, rate: float) -> Tensor:
    """What dropout keeps of an activation: [S,B,D] bool, True with probability 1 - rate.

    seeds: [B], one per sample; tokens: [S] and features: [D], places in the whole activation; all int64 in [0, 2^32).
    """
    rows = mix(mix(seeds)[None, :] ^ mix(tokens + 1)[:, None])
    return mix(rows[:, :, None] ^ mix(mix(features + 1))) >= round(rate * 2**32)


def dropout(x: Tensor, rate: float, seeds: Tensor, tokens: Tensor, first_feature: int = 0) -> Tensor:
    """x [S,B,D] with some numbers 0 and the others divided by 1 - rate; see `kept`. first_feature: place of x[..., 0]."""
    features = torch.arange(first_feature, first_feature + x.shape[2], device=x.device)
    return torch.where(kept(seeds, tokens, features, rate), x / (1 - rate), 0)
