"""Random numbers by address: each draw has its own seed, derived from its purpose.

Noise comes from (seed, "noise", iteration, micro-batch, data-parallel rank), a prompt's noise from (seed, prompt
index), a weight's initial value from (seed, its name). No draw depends on the number of earlier draws, so a resume,
another layout or more workers change nothing.
"""

import hashlib

import torch


def derive(seed: int, *address: int | str) -> int:
    """A 63-bit seed for `address` under `seed`; stable across processes, platforms and versions."""
    text = "/".join(map(str, (seed, *address)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *address: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded by `derive`; by default on the CPU, for equal numbers on every device."""
    return torch.Generator(device=device).manual_seed(derive(seed, *address))
