"""Exponential moving average of the weights, kept beside the fp32 main shards (as MindSpeed's fused_ema_adamw)."""

import torch
from torch import Tensor

from mindspeed_mm.parallel.engine import Engine


class Ema:
    """One fp32 average per main shard of this rank, and the number of updates.

    decay_n = min(decay, (1 + n) / (10 + n)) at the n-th update: short at first, so that the start is forgotten.
    """

    def __init__(self, engine: Engine, decay: float):
        self.decay = decay
        self.updates = 0
        self.shards: dict[str, Tensor] = {}
        self._engine = engine
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew at the current weights."""
        self.updates = 0
        self.shards = {shard.name: shard.main.detach().float().clone() for shard in self._engine.main_shards()}

    def averages(self) -> list[Tensor]:
        """One tensor beside each of the engine's main shards."""
        return [self.shards[shard.name] for shard in self._engine.main_shards()]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights after an optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mains = [shard.main.detach().float() for shard in self._engine.main_shards()]
        if mains:
            averages = list(self.shards.values())
            torch._foreach_mul_(averages, decay)
            torch._foreach_add_(averages, mains, alpha=1 - decay)
