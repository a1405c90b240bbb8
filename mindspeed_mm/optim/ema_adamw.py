"""Updates AdamW and the weights' moving average in one pass over memory: MindSpeed's kernel on Ascend."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mindspeed_mm.parallel.megatron_engine import adopt_groups

_ADAMW = 1  # the kernel's mode for decoupled weight decay; 0 would be Adam's


class EmaAdamW(torch.optim.AdamW):
    """torch's AdamW with another `step`: each shard and its average are updated by one call of a kernel.

    The kernel has the signature and the meaning of MindSpeed's npu_apply_fused_ema_adamw(grad, var, m, v, s, step, lr,
    ema_decay, beta1, beta2, eps, mode, bias_correction, weight_decay) -> (var, m, v, s), all of them fp32 and of one shape:
        m = beta1 m + (1 - beta1) grad;  v = beta2 v + (1 - beta2) grad^2
        var = var - lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay var)
        s = ema_decay s + (1 - ema_decay) var
    """

    def __init__(
        self,
        before: torch.optim.Optimizer,
        kernel: Callable,
        averages: Callable[[], Mapping[Tensor, Tensor]],
        decay: Callable[[], float],
    ):
        """before: the AdamW whose parameters and moments are taken over. averages: maps a shard to its average. decay:
        of the averages in this step.
        """
        super().__init__([torch.empty(0)])
        self.param_groups = adopt_groups(before.param_groups, self)
        self._kernel = kernel
        self._averages = averages
        self._decay = decay
        steps: dict[torch.device, Tensor] = {}  # one count per device, shared by its shards; the kernel reads int64 [1]
        for shard, state in before.state.items():
            _check(shard)
            count = steps.setdefault(shard.device, torch.full((1,), int(state["step"]), device=shard.device))
            self.state[shard] = {**state, "step": count}
        self._steps = list(steps.values())

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates every shard that has a gradient, and its average."""
        assert closure is None
        for count in self._steps:
            count += 1
        averages, decay = self._averages(), self._decay()
        for group in self.param_groups:
            for shard in group["params"]:
                if shard.grad is not None:
                    self._update(shard, averages[shard], group, decay)

    def _update(self, shard: Tensor, average: Tensor, group: dict, decay: float) -> None:
        state, (beta1, beta2) = self.state[shard], group["betas"]
        old = (shard.data, state["exp_avg"], state["exp_avg_sq"], average)
        new = self._kernel(
            shard.grad,
            *old,
            state["step"],
            group["lr"],
            decay,
            beta1,
            beta2,
            group["eps"],
            _ADAMW,
            True,
            group["weight_decay"],
        )
        for mine, result in zip(old, new, strict=True):
            # the kernel works in place, but its documentation does not promise it
            if mine.data_ptr() != result.data_ptr():
                mine.copy_(result)


def _check(shard: Tensor) -> None:
    if shard.dtype != torch.float32:
        raise ValueError(f"fused EMA-AdamW: a shard {list(shard.shape)} of {shard.dtype}; its kernel takes fp32 only")
