"""Random numbers by address: each draw has its own seed, derived from its purpose.

Noise comes from (seed, "noise", iteration, micro-batch, data-parallel rank), a prompt's noise from (seed, prompt
index), a weight's initial value from (seed, its name). No draw depends on the number of earlier draws, so a resume,
another layout or more workers change nothing.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import torch


def derive(seed: int, *address: int | str) -> int:
    """A 63-bit seed for `address` under `seed`; stable across processes, platforms and versions."""
    text = "/".join(map(str, (seed, *address)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *address: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded by `derive`; by default on the CPU, for equal numbers on every device."""
    return torch.Generator(device=device).manual_seed(derive(seed, *address))


@dataclasses.dataclass(frozen=True, slots=True)
class SampleDraws:
    """Random choices for a micro-batch, addressed by its samples: the same at any layout and after a resume.

    addresses: (epoch, place in the list) of each sample. A purpose, such as "dropout", keeps draws apart.
    """

    seed: int
    addresses: tuple[tuple[int, int], ...]

    def seeds(self, purpose: str) -> list[int]:
        """One 63-bit seed for each sample."""
        return [derive(self.seed, purpose, *address) for address in self.addresses]

    def integers(self, purpose: str, limits: Sequence[int]) -> tuple[int, ...]:
        """One whole number from 0 to each limit, for the whole micro-batch; its first sample decides."""
        source = generator(self.seed, purpose, *self.addresses[0])
        return tuple(int(torch.randint(limit + 1, (1,), generator=source)) for limit in limits)
