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
_NUMBERS_AT_ONCE = 2**24  # of a mask: hashing takes 16 bytes for each, eight times what a bf16 activation takes


def mix(x: Tensor) -> Tensor:
    """Hashes each number: int64 in [0, 2^32) -> int64 in [0, 2^32)."""
    return _mix_in_place(x.clone())


def _mix_in_place(x: Tensor) -> Tensor:
    """`mix` in x's memory: 8 bytes beside it for each number, where a new tensor for each step needs 16."""
    x.bitwise_xor_(x >> 16)
    x.mul_(_FACTORS[0]).bitwise_and_(_BITS)
    x.bitwise_xor_(x >> 15)
    x.mul_(_FACTORS[1]).bitwise_and_(_BITS)
    return x.bitwise_xor_(x >> 15)


def derive(seeds: Tensor, place: int) -> Tensor:
    """Seeds for one of several places that share `seeds`: [B] int64 in [0, 2^32) -> the same; place: in [0, 2^32)."""
    return mix(seeds ^ mix(torch.full_like(seeds, place)))


@torch.no_grad()
def kept(seeds: Tensor, tokens: Tensor, features: Tensor, rate: float) -> Tensor:
    """Mask of the numbers that dropout keeps: [S,B,D] bool, True with probability 1 - rate.

    seeds: [B], one per sample. tokens: [S] and features: [D], places in the whole activation. All are int64 in [0,
    2^32).
    """
    rows, columns = mix(mix(seeds)[None, :] ^ mix(tokens + 1)[:, None]), mix(mix(features + 1))
    least = round(rate * 2**32)
    at_once = max(1, _NUMBERS_AT_ONCE // max(1, len(seeds) * len(features)))
    if len(tokens) <= at_once or torch.compiler.is_compiling():  # a compiler keeps the hashes in registers
        return _mix_in_place(rows[:, :, None] ^ columns) >= least
    parts = [_mix_in_place(part[:, :, None] ^ columns) >= least for part in rows.split(at_once)]
    return torch.cat(parts)


def dropout(x: Tensor, rate: float, seeds: Tensor, tokens: Tensor, first_feature: int = 0) -> Tensor:
    """x [S,B,D] with dropped numbers 0 and others divided by 1 - rate; see `kept`. first_feature: place of x[..., 0]."""
    features = torch.arange(first_feature, first_feature + x.shape[2], device=x.device)
    return torch.where(kept(seeds, tokens, features, rate), x / (1 - rate), 0)
