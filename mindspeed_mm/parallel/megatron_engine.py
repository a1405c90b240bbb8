"""A network under megatron-core's gradient buffers and optimizer: joins distributed training to this project.

Megatron sums the gradients over the ranks, shards the weights over them and gathers them again. The update between is
taken apart here, over lists of all shards (`main_weights.py`).
"""

import contextlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from mindspeed_mm.config.run import OptimizerSettings
from mindspeed_mm.parallel import host_state
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.engine import MainShard
from mindspeed_mm.parallel.gathering import Gathering
from mindspeed_mm.parallel.main_weights import MainWeights
from mindspeed_mm.parallel.megatron import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    DistributedOptimizer,
    OptimizerConfig,
    ParamKey,
    ParamPredicate,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from mindspeed_mm.parallel.schedule import Schedule
from mindspeed_mm.platforms.base import Platform


class MegatronEngine:
    """The `Engine` of this package: Megatron's gradient buffers, distributed optimizer and AdamW."""

    def __init__(
        self,
        network: nn.Module,
        parallel: ParallelContext,
        platform: Platform,
        settings: OptimizerSettings,
        units: Sequence[nn.Module] = (),
        lr_factors: Mapping[str, float] = types.MappingProxyType({}),
    ):
        """units: modules of the network whose weights are gathered one by one while it runs, in call order (see
        `Gathering`). Without units --overlap-param-gather waits for all weights before the network runs. lr_factors: on
        the learning rate, by name of a parameter of the network.
        """
        self.network = network
        self.parallel = parallel
        self.platform = platform
        self.settings = settings
        # The base of an adapter is frozen, and may be of another dtype.
        dtype = next(parameter.dtype for parameter in network.parameters() if parameter.requires_grad)
        with platform.engine_scope():
            self.ddp = DistributedDataParallel(
                parallel.config(),
                DistributedDataParallelConfig(
                    grad_reduce_in_fp32=settings.grad_reduce_in_fp32,
                    overlap_grad_reduce=settings.overlap_grad_reduce,
                    overlap_param_gather=settings.overlap_param_gather,
                    use_distributed_optimizer=settings.use_distributed_optimizer,
                    bucket_size=settings.ddp_bucket_size,
                ),
                network,
            )
            self._exchange_through(parallel.data_and_context)
            if settings.overlap_param_gather:
                Gathering(self.ddp, units)
            options = _optimizer_config(settings, dtype)
            overrides = _overrides(options, settings, network, lr_factors)
            with host_state.main_weights_on_host(settings, network, parallel):
                chained: Any = get_megatron_optimizer(
                    options, [self.ddp], config_overrides=overrides, use_gloo_process_groups=False
                )
            self.optimizer = chained.chained_optimizers[0]
            if platform.fused_adamw:
                self.replace_inner(_fused)
        self._scaler = getattr(self.optimizer, "grad_scaler", None)  # None except in fp16
        self._keep_scale_on_host()
        counts_whole = parallel.tensor_rank == 0
        self._main = MainWeights(self.optimizer, network, counts_whole, on_host=settings.cpu_offload)
        self._host = (
            host_state.HostState(self.optimizer, self._main, platform.copies()) if settings.cpu_offload else None
        )
        self._create_optimizer_state()
        self._partial = _partial_gradients(network) if parallel.tensor_size > 1 else []
        self._alone = parallel.data_and_context.size() == 1  # nothing to exchange with other data ranks
        self._schedule: Schedule | None = None

    def _exchange_through(self, group: dist.ProcessGroup) -> None:
        """Megatron looks its group up; this is the same one, which may have a faster way (`same_host.py`)."""
        for bucket_group in self.ddp.bucket_groups:
            for name, value in list(vars(bucket_group).items()):
                if isinstance(value, dist.ProcessGroup) and group == value:
                    setattr(bucket_group, name, group)

    def replace_inner(self, make: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]) -> None:
        """Replaces the AdamW inside Megatron's optimizer by make(AdamW), over the same parameter groups."""
        self.optimizer.optimizer = make(self.optimizer.optimizer)

    def schedule(self, global_batch_size: int) -> None:
        """Starts the learning-rate schedule."""
        self._schedule = Schedule(self.optimizer, self.settings, global_batch_size)

    @property
    def scheduler(self) -> Schedule:
        """The learning-rate schedule, once `schedule` has started it."""
        assert self._schedule is not None
        return self._schedule

    # -------------------------------------------------------------------------------------------------------- one step

    def start_step(self) -> None:
        """Clears the gradients."""
        with self.platform.engine_scope():
            self.ddp.zero_grad_buffer()
            self._main.drop_gradients()

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager:
        """Context around forward and backward of a micro-batch; gradients are exchanged in the last one only."""
        return contextlib.nullcontext() if last else self.ddp.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradients of a scalar loss, with fp16's loss scale."""
        (loss * self.loss_scale()).backward()

    def loss_scale(self) -> float:
        """fp16's loss scale, which the host knows without asking the device; 1 in other precisions."""
        return 1.0 if self._scaler is None else self._scaler.scale.item()

    @property
    def shares_weights(self) -> bool:
        """True if each data rank has its own `main_shards`, False if every one has all of them."""
        return isinstance(self.optimizer, DistributedOptimizer)

    @property
    def lowest_loss_scale(self) -> float:
        """Lower limit of fp16's loss scale; the scale itself if it is constant."""
        return self.settings.min_loss_scale if self.settings.loss_scale is None else self.settings.loss_scale

    def finish_gradients(self) -> Tensor:
        """Averages the gradients over the data ranks and passes them to the main weights.

        Returns fp32 [2] on the device, the same on every rank: the square of the L2 norm of the whole network's gradient,
        and more than 0 if fp16 overflowed. The host reads nothing here; `note_overflow` must follow.
        """
        with self.platform.engine_scope():
            if not self._alone or self.settings.overlap_grad_reduce:
                self.ddp.finish_grad_sync()
        self._sum_partial_gradients()
        self._main.take_gradients()
        group = self.optimizer.get_grad_stats_parallel_group()
        overflow = self._unscale(group)
        total = self._main.squared_norm()
        dist.all_reduce(total, group=group)
        return torch.cat([total, overflow])

    def _unscale(self, group: dist.ProcessGroup) -> Tensor:
        """Divides the gradients by fp16's loss scale. Returns [1], more than 0 if one of any rank is not finite."""
        overflow = torch.zeros(1, device=next(self.network.parameters()).device)
        if self._scaler is not None:
            gradients = self._main.gradients()
            if gradients:
                factor = torch.full_like(overflow, self._scaler.inv_scale.item())
                torch._amp_foreach_non_finite_check_and_unscale_(gradients, overflow, factor)
            dist.all_reduce(overflow, op=dist.ReduceOp.MAX, group=group)
        return overflow

    def note_overflow(self, overflow: bool) -> None:
        """Adjusts fp16's loss scale after a step's gradients; does nothing in other precisions."""
        if self._scaler is not None:
            self._scaler.update(overflow)

    def _sum_partial_gradients(self) -> None:
        """Sums over TP the gradients that `partition.mark` flagged as partial, in one exchange."""
        if self._partial:
            together = _flatten_dense_tensors(self._partial)
            dist.all_reduce(together, group=self.parallel.tensor)
            torch._foreach_copy_(self._partial, _unflatten_dense_tensors(together, self._partial))

    def scale_gradients(self, factor: float) -> None:
        """Multiplies all gradients."""
        gradients = self._main.gradients()
        if gradients:
            torch._foreach_mul_(gradients, factor)

    @torch.no_grad()
    def update(self) -> None:
        """Runs one AdamW step on the main weights, and updates the network's weights on every rank.

        With --overlap-param-gather the next training forward pass gathers them; earlier readers must call `publish`.
        """
        self._settle()
        if self._host is None:
            self.optimizer.optimizer.step()
            self._main.to_network()
        else:
            self._host.update()
        if isinstance(self.optimizer, DistributedOptimizer) and not (self._alone or self.settings.overlap_param_gather):
            with self.platform.engine_scope():
                self.ddp.start_param_sync()

    def advance_schedule(self) -> None:
        self.scheduler.advance()

    def learning_rate(self) -> float:
        """Of the parameters without a factor, if there are some."""
        groups = self.optimizer.param_groups
        return next((group for group in groups if group.get("default_config", True)), groups[0])["lr"]

    # ---------------------------------------------------------------------------------------------------------- weights

    def main_shards(self) -> list[MainShard]:
        """This rank's main weights, in the order of the network's parameters."""
        return self._main.shards

    def moments(self) -> dict[str, list[Tensor]]:
        """AdamW's two moments, one tensor for each of `main_shards`."""
        state = self.optimizer.optimizer.state
        shards = self.main_shards()
        return {key: [state[shard.main][key] for shard in shards] for key in ("exp_avg", "exp_avg_sq")}

    def counters(self) -> dict:
        """The rest of the optimizer's state: step count and fp16's loss scale."""
        steps = {int(state["step"]) for state in self.optimizer.optimizer.state.values()}
        return {
            "step": max(steps, default=0),
            "grad_scaler": None if self._scaler is None else self._scaler.state_dict(),
        }

    def load_counters(self, state: dict) -> None:
        """Restores a result of `counters`."""
        for parameter_state in self.optimizer.optimizer.state.values():
            parameter_state["step"].fill_(state["step"])
        if state["grad_scaler"] is not None and self._scaler is not None:
            with self.platform.engine_scope():
                self._scaler.load_state_dict(state["grad_scaler"])
            self._keep_scale_on_host()

    @torch.no_grad()
    def publish(self) -> None:
        """Copies the main weights into the network on every rank; collective.

        Call it before any reader other than a training forward pass, and after any writer of main weights other than
        `update`.
        """
        with self.platform.engine_scope():
            self._settle()
            self._main.to_network()
            if isinstance(self.optimizer, DistributedOptimizer):
                self.ddp.start_param_sync(force_sync=True)

    @contextlib.contextmanager
    @torch.no_grad()
    def weights_of(self, values: list[Tensor]):
        """Context in which the network has other weights: one tensor for each of `main_shards`, such as their
        averages.

        Collective. Afterwards the weights are bitwise restored.
        """
        mains = [shard.main for shard in self.main_shards()]
        kept = [main.detach().clone() for main in mains]
        self._show(mains, values)
        try:
            yield
        finally:
            self._show(mains, kept)

    def _show(self, mains: list[Tensor], values: list[Tensor]) -> None:
        self._settle()
        for main, value in zip(mains, values, strict=True):
            main.data.copy_(value)
        self.publish()

    def _settle(self) -> None:
        """Waits for pending gathers: they write into the memory that is overwritten next."""
        for group in self.ddp.bucket_groups:
            if group.param_gather_handle is not None:
                # `start_param_sync(force_sync=True)` waits as well, but MindSpeed's fails: its handle is a list.
                group.finish_param_sync(skip_next_bucket_dispatch=True)

    def weights_changed(self) -> None:
        """Copies the network's weights into the main weights, after loading a file."""
        self._main.from_network()

    @torch.no_grad()
    def keep(self, values: list[Tensor]) -> list[Tensor]:
        """Fp32 copies of main weights in memory of the optimizer's state: on the device, or on the host."""
        return [value.float().clone() for value in values] if self._host is None else self._host.keep(values)

    def average_in_update(self, averages: Callable[[], list[Tensor]], decay: Callable[[], float]) -> bool:
        """With the optimizer's state on the host: True, and from now on `update` also moves the averages, one from `keep` for
        each of `main_shards`, towards the weights. Else False.
        """
        if self._host is not None:
            self._host.average(averages, decay)
        return self._host is not None

    def _keep_scale_on_host(self) -> None:
        """Moves fp16's loss scale to the host, since each micro-batch asks for it; Megatron makes it on the device."""
        if self._scaler is not None:
            for name, value in vars(self._scaler).items():
                if isinstance(value, Tensor):
                    setattr(self._scaler, name, value.cpu())

    def _create_optimizer_state(self) -> None:
        """Creates zero moments at the start, so that a checkpoint before the first step looks like any other."""
        inner, device = self.optimizer.optimizer, next(self.network.parameters()).device
        parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
        zeros = _zeros if self._host is None else self._host.zeros
        for parameter, first, second in zip(parameters, zeros(parameters), zeros(parameters), strict=True):
            inner.state[parameter] = {
                "step": torch.zeros((), device=device if self.platform.fused_adamw else "cpu"),
                "exp_avg": first,
                "exp_avg_sq": second,
            }


def _zeros(like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(parameter) for parameter in like]


def _fused(adamw: torch.optim.Optimizer) -> torch.optim.AdamW:
    """torch's AdamW with one kernel per parameter, whichever AdamW Megatron found or MindSpeed installed."""
    fused = torch.optim.AdamW([torch.empty(0)], fused=True)
    fused.param_groups = adopt_groups(adamw.param_groups, fused)
    return fused


def adopt_groups(groups: list[dict], into: torch.optim.Optimizer) -> list[dict]:
    """The same groups with the options of another optimizer, whose constructor would refuse shards, since they are
    views.
    """
    for group in groups:
        group.update({key: into.defaults[key] for key in ("fused", "foreach")})
        for key, value in into.defaults.items():
            group.setdefault(key, value)
    return groups


def _partial_gradients(network: nn.Module) -> list[Tensor]:
    trained = (parameter for parameter in network.parameters() if parameter.requires_grad)
    marked = (parameter for parameter in trained if getattr(parameter, "sequence_parallel", False))
    return [parameter.main_grad for parameter in marked]  # pyright: ignore[reportAttributeAccessIssue]


def _overrides(
    options: OptimizerConfig, settings: OptimizerSettings, network: nn.Module, factors: Mapping[str, float]
) -> dict | None:
    """Megatron's settings of its parameter groups, with a learning rate of its own for each factor; None: its default."""
    if not factors:
        return None
    chosen: dict[float, set[int]] = {}
    for name, parameter in network.named_parameters():
        if name in factors:
            chosen.setdefault(factors[name], set()).add(id(parameter))
    overrides: dict = get_standard_config_overrides(options)
    for factor, members in chosen.items():
        predicate = ParamPredicate(f"lr x {factor}", lambda parameter, members=members: id(parameter) in members)
        overrides[ParamKey(predicate=predicate)] = {
            "max_lr": settings.lr * factor,
            "min_lr": settings.min_lr * factor,
        }
    return overrides


def _optimizer_config(settings: OptimizerSettings, dtype: torch.dtype) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        loss_scale=settings.loss_scale,
        initial_loss_scale=settings.initial_loss_scale,
        min_loss_scale=settings.min_loss_scale,
        loss_scale_window=settings.loss_scale_window,
        hysteresis=settings.hysteresis,
        use_distributed_optimizer=settings.use_distributed_optimizer,
        overlap_param_gather=settings.overlap_param_gather,
        clip_grad=0.0,  # optim/step.py clips
    )
