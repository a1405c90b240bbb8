"""AdamW with an EMA on five weights, step by step, on the gradients of a recorded trace."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mindspeed_mm.config.run import OptimizerSettings
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.parallel.megatron_engine import MegatronEngine
from mindspeed_mm.platforms.base import Platform


def kernel(grad, var, m, v, s, step, lr, ema_decay, beta1, beta2, eps, mode, bias_correction, weight_decay):
    """What MindSpeed documents of npu_apply_fused_ema_adamw, in place; for mode 1 with bias correction."""
    assert (mode, bias_correction, step.dtype, step.shape) == (1, True, torch.int64, (1,))
    m.mul_(beta1).add_(grad, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    count = int(step)
    update = (m / (1 - beta1**count)) / ((v / (1 - beta2**count)).sqrt() + eps) + weight_decay * var
    var.sub_(update, alpha=lr)
    s.mul_(ema_decay).add_(var, alpha=1 - ema_decay)
    return var, m, v, s


def copying_kernel(grad, *rest):
    """The same, but its results are other tensors."""
    return kernel(grad, *(tensor.clone() for tensor in rest[:4]), *rest[4:])


def run(
    recorded: dict, platform: Platform, fused: Callable | None, distributed: bool, resume_after: int | None = None
) -> list[dict[str, list[float]]]:
    """After each step: "param", "exp_avg", "exp_avg_sq", "ema_params", as in the recorded trace, and "kernel_step".

    resume_after: after that many steps, go on in another engine that is given the first one's state.
    """
    engine, ema = _start(recorded, platform, fused, distributed)
    found = []
    for number, gradient in enumerate(recorded["grads"]):
        if number == resume_after:
            engine, ema = _resumed(engine, ema, recorded, platform, fused, distributed)
        weight = next(engine.network.parameters())
        engine.start_step()
        with engine.micro_batch(last=True):
            engine.backward((weight * torch.tensor(gradient).to(weight.device)).sum())
        _, overflow = engine.finish_gradients().tolist()
        assert not overflow
        engine.update()
        ema.update()
        found.append(_state(engine, ema))
    return found


def _start(recorded: dict, platform: Platform, fused: Callable | None, distributed: bool) -> tuple[Engine, Ema]:
    hyper, device = recorded["hyper"], platform.device(0)
    network = nn.Module()
    network.weight = nn.Parameter(torch.tensor(recorded["p0"], device=device))
    settings = OptimizerSettings(
        lr_decay_iters=1,
        lr=hyper["lr"],
        eps=hyper["eps"],
        beta1=hyper["betas"][0],
        beta2=hyper["betas"][1],
        weight_decay=hyper["weight_decay"],
        use_distributed_optimizer=distributed,
    )
    engine = MegatronEngine(network, ParallelContext.current(), platform, settings)
    for group in engine.optimizer.param_groups:
        group["wd_mult"] = 1.0  # Megatron gives vectors, such as biases, no weight decay
    engine.schedule(1)
    return engine, Ema(engine, hyper["ema_decay"], fused)


def _resumed(before: Engine, ema: Ema, *arguments) -> tuple[Engine, Ema]:
    engine, mine = _start(*arguments)
    with torch.no_grad():
        for old, new in zip(before.main_shards(), engine.main_shards(), strict=True):
            new.main.copy_(old.main)
            mine.shards[new.name].copy_(ema.shards[old.name])
        for key, tensors in before.moments().items():
            for old, new in zip(tensors, engine.moments()[key], strict=True):
                new.copy_(old)
    engine.load_counters(before.counters())
    mine.updates = ema.updates
    return engine, mine


def _state(engine: Engine, ema: Ema) -> dict[str, list[float]]:
    (shard,) = engine.main_shards()
    (first,), (second,) = engine.moments().values()
    values: dict[str, Tensor] = {
        "param": shard.main,
        "exp_avg": first,
        "exp_avg_sq": second,
        "ema_params": ema.shards["weight"],
    }
    numbers = {name: value.detach().cpu().flatten().tolist() for name, value in values.items()}
    return {**numbers, "kernel_step": engine.counters()["step"]}
