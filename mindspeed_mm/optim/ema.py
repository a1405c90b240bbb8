"""Exponential moving average of the weights, kept beside the fp32 main shards (like MindSpeed's fused_ema_adamw)."""

from collections.abc import Callable

import torch
from torch import Tensor

from mindspeed_mm.optim.ema_adamw import EmaAdamW
from mindspeed_mm.parallel.engine import Engine


class Ema:
    """One fp32 average per main shard of this rank, and the number of updates.

    decay_n = min(decay, (1 + n) / (10 + n)) at the n-th update: short at first, so that early weights fade.
    """

    def __init__(self, engine: Engine, decay: float, kernel: Callable | None = None):
        """kernel: updates weights and average in one call within the optimizer step (see EmaAdamW); None: `update`
        does. With the optimizer's state on the host the engine's update moves the averages, without this kernel.
        """
        self.decay = decay
        self.updates = 0
        self.shards: dict[str, Tensor] = {}
        self._engine = engine
        with_state = engine.average_in_update(self.averages, self._next_decay)
        self._in_optimizer = with_state or kernel is not None
        self.restart()
        if kernel is not None and not with_state:
            engine.replace_inner(lambda adamw: EmaAdamW(adamw, kernel, self._by_main_shard, self._next_decay))

    @torch.no_grad()
    def restart(self) -> None:
        """Restarts the average at the current weights."""
        self.updates = 0
        main = self._engine.main_shards()
        values = self._engine.keep([shard.main for shard in main])
        self.shards = {shard.name: value for shard, value in zip(main, values, strict=True)}

    def averages(self) -> list[Tensor]:
        """One tensor for each of the engine's main shards."""
        return [self.shards[shard.name] for shard in self._engine.main_shards()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights after an optimizer step."""
        decay = self._next_decay()
        self.updates += 1
        if self._in_optimizer:
            return
        mains = [shard.main for shard in self._engine.main_shards()]
        if mains:
            averages = list(self.shards.values())
            torch._foreach_mul_(averages, decay)
            torch._foreach_add_(averages, mains, alpha=1 - decay)

    def _next_decay(self) -> float:
        """Decay for the next update."""
        return min(self.decay, (2 + self.updates) / (11 + self.updates))

    def _by_main_shard(self) -> dict[Tensor, Tensor]:
        return {shard.main: self.shards[shard.name] for shard in self._engine.main_shards()}
