"""Dropout (1207.0580) by address: a number's place and its sample's seed decide whether it is dropped.

Torch's generators count draws, so another split of an activation, or one earlier draw more, changes the mask. Here a
hash of (seed, token, feature) decides. Each rank computes the mask of its own part, and recomputation or a resumed run
computes the same mask.
"""

import torch
from torch import Tensor

# lowbias32, two rounds, of the hash prospector (https://github.com/skeeto/hash-prospector): every bit of the 32
# depends on all input bits. Both factors are below 2^31, so products stay within int64 on every device.
_FACTORS = (0x21F0AAAD, 0x735A2D97)
_BITS = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """Hashes each number: int64 in [0, 2^32) -> int64 in [0, 2^32)."""
    x = x ^ (x >> 16)
    x = (x * _FACTORS[0]) & _BITS
    x = x ^ (x >> 15)
    x = (x * _FACTORS[1]) & _BITS
    return x ^ (x >> 15)


def derive(seeds: Tensor, place: int) -> Tensor:
    """Seeds for one of several places that share `seeds`: [B] int64 in [0, 2^32) -> the same; place: in [0, 2^32)."""
    return mix(seeds ^ mix(torch.full_like(seeds, place)))


@torch.no_grad()
def kept(seeds: Tensor, tokens: Tensor, features: Tensor, rate: float) -> Tensor:
    """Mask of the numbers that dropout keeps: [S,B,D] bool, True with probability 1 - rate.

    seeds: [B], one per sample. tokens: [S] and features: [D], places in the whole activation. All are int64 in [0,
    2^32).
    """
    rows = mix(mix(seeds)[None, :] ^ mix(tokens + 1)[:, None])
    return mix(rows[:, :, None] ^ mix(mix(features + 1))) >= round(rate * 2**32)


def dropout(x: Tensor, rate: float, seeds: Tensor, tokens: Tensor, first_feature: int = 0) -> Tensor:
    """x [S,B,D] with dropped numbers 0 and others divided by 1 - rate; see `kept`. first_feature: place of x[..., 0]."""
    features = torch.arange(first_feature, first_feature + x.shape[2], device=x.device)
    return torch.where(kept(seeds, tokens, features, rate), x / (1 - rate), 0)
