"""Random numbers by address: every draw has a seed of its own, derived from what it is for.

Noise comes from (seed, "noise", iteration, micro-batch, data-parallel rank), a prompt's noise from (seed, prompt
index), a weight's initial value from (seed, its name). Nothing depends on how many draws came before, so resuming,
another layout or more workers change nothing.
"""

import hashlib

import torch


def derive(seed: int, *address: int | str) -> int:
    """A 63-bit seed for `address` under `seed`; stable across processes, platforms and versions."""
    text = "/".join(map(str, (seed, *address)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *address: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded by `derive`. On the CPU by default: the same numbers on every device."""
    return torch.Generator(device=device).manual_seed(derive(seed, *address))
