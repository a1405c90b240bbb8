"""State of a training run: collected into plain values for a checkpoint, and restored from them at any layout."""

import argparse
import dataclasses
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.adapters.attach import adapter_names
from mindspeed_mm.adapters.record import AdapterRecord, check_same
from mindspeed_mm.checkpoint.rank_files import Contents
from mindspeed_mm.checkpoint.shares import Part, Shares, copies
from mindspeed_mm.config import distillation
from mindspeed_mm.config.distillation import Distilled
from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.data.feed.loader import Loader
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.files.trusted import Inert
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.optim.step import OptimizerStep
from mindspeed_mm.parallel import schedule, shards
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.parallel.partition import partition_dims
from mindspeed_mm.training.held_out import HeldOutLosses

_log = logs.get(__name__)
_CHECKPOINT_VERSION = 3.0  # Megatron's version number for this layout

Named = dict[str, Tensor]
Tensors = Iterator[tuple[str, str, Tensor]]  # group, parameter's name, fp32 tensor


@dataclasses.dataclass(slots=True)
class Saved:
    """State of a run in a checkpoint. Its tensors are read when they are used.

    common: plain values. model: parameters in the model's precision. optimizer: "param", "exp_avg", "exp_avg_sq" and, with
    EMA, "ema_params", in fp32; empty if it was not saved.
    """

    common: dict
    model: Weights
    optimizer: dict[str, Weights]


class TrainingState:
    """The state that a resume needs: weights, EMA, optimizer, schedule, clipping, random numbers, place in the data."""

    def __init__(
        self,
        engine: Engine,
        optimizer: OptimizerStep,
        loader: Loader,
        settings: CheckpointConfig,
        flags: tuple[tuple[str, object], ...] = (),
        adapter: AdapterRecord | None = None,
        distilled: Distilled | None = None,
    ):
        """settings: which parts are saved and loaded. flags: the run's flags, stored as Megatron's `args`. adapter: of a
        run that trains one; its checkpoints hold the adapter alone. distilled: of a run that learns from a teacher, which is
        in no checkpoint; a resume compares its fingerprint.
        """
        self.settings = settings
        self.flags = flags
        self.engine = engine
        self.optimizer = optimizer
        self.loader = loader
        self.adapter = adapter
        self.distilled = distilled
        self.dims = partition_dims(engine.network)
        self.iteration = 0
        self.consumed_samples = 0
        self.skipped_steps = 0
        self.held_out = HeldOutLosses()

    # --------------------------------------------------------------------------------------------------------- collect

    def contents(self, in_background: bool) -> tuple[Contents, Tensors]:
        """What this TP rank's files hold, and the optimizer's tensors for the first data rank to write; collective.

        The tensors come from all data ranks, so each of these must exhaust the iterator. in_background: everything is a copy
        on the CPU and the iterator is not collective, so training may continue while it is written.
        """
        model, groups = self.saved_parameters(), self._sharded()
        trained = {name: tuple(value.shape) for name, value in model.items() if value.requires_grad}
        tensors: Tensors = shards.stream(self.engine.main_shards(), groups, list(trained))
        if in_background:
            tensors = iter([(group, name, value.clone()) for group, name, value in tensors])
            first = self.engine.parallel.data_and_context.rank() == 0
            model = {name: value.detach().to("cpu", copy=True) for name, value in model.items()} if first else {}
        names = list(model) if self.adapter is not None else list(self.engine.network.state_dict())
        return Contents(self._common(), model, names, trained, list(groups)), tensors

    def parts(self, in_background: bool) -> tuple[dict, list[Part]]:
        """Common values, for the first rank to write, and the tensors that this rank writes; collective.

        in_background: the tensors are copies on the CPU, so training may continue while they are written.
        """
        mine, main = Shares(self.dims, self.engine.parallel), self.engine.main_shards()
        found: list[Part] = []
        for key, values in self._sharded().items():
            found += mine.of_shards(key, main, values, same=not self.engine.shares_weights)
        found += mine.of_parameters("model", self.saved_parameters())
        if in_background:
            found = copies(found, lambda tensor: tensor.to("cpu", copy=True))
        return self._common(), found

    def _sharded(self) -> dict[str, list[Tensor]]:
        """What is saved of this rank's shards, one tensor for each; collective."""
        self.engine.publish()
        values: dict[str, list[Tensor]] = {}
        if self.settings.save_optimizer:
            values = {"param": [shard.main for shard in self.engine.main_shards()], **self.engine.moments()}
        if self.optimizer.ema is not None:
            values["ema_params"] = self.optimizer.ema.averages()
        return values

    def saved_parameters(self) -> Named:
        """The parameters that a checkpoint holds: those of the network, or of its adapter alone."""
        every: Named = dict(self.engine.network.named_parameters())
        return every if self.adapter is None else {name: every[name] for name in adapter_names(every)}

    def _common(self) -> dict:
        """Plain values; collective. The random numbers are there on the first data rank of each TP rank."""
        ema = self.optimizer.ema
        rng = self._gather_rng() if self.settings.save_rng else None
        return {
            "args": argparse.Namespace(**dict(self.flags)),
            "checkpoint_version": _CHECKPOINT_VERSION,
            "iteration": self.iteration,
            "consumed_train_samples": self.consumed_samples,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.optimizer.skipped_in_a_row,
            "clip": self.optimizer.clip.state_dict(),
            "ema_updates": None if ema is None else ema.updates,
            "data": self.loader.state_dict(),
            "held_out": self.held_out.state_dict(),
            "opt_param_scheduler": self.engine.scheduler.state_dict(),
            "rng_state": rng,
            "adapter": None if self.adapter is None else self.adapter.plain(),
            distillation.DISTILLED: None if self.distilled is None else self.distilled.plain(),
            "optimizer": self.engine.counters() if self.settings.save_optimizer else None,
        }

    def _gather_rng(self) -> list[dict] | None:
        """Torch's random state of every data rank on the first of them, None on the others."""
        mine = {"torch": torch.get_rng_state(), "device": self.engine.platform.rng_state()}
        group = self.engine.parallel.data_and_context
        everyone: list | None = [None] * group.size() if group.rank() == 0 else None
        dist.gather_object(mine, everyone, group=group, group_dst=0)
        return everyone

    # --------------------------------------------------------------------------------------------------------- restore

    def restore(self, saved: Saved) -> None:
        """Restores a checkpoint; collective. Every rank reads its shards, and the weights that they do not give."""
        settings, common = self.settings, saved.common
        changed = _changed_flags(common["args"], dict(self.flags))
        if changed:
            _log.info(f"flags that have changed since the checkpoint: {', '.join(changed)}")
        check_same(self.adapter, common.get("adapter"))
        distillation.check_same(self.distilled, common.get(distillation.DISTILLED))
        with_optimizer = settings.load_optimizer and common["optimizer"] is not None
        if with_optimizer:
            _check_trained(common["args"], dict(self.flags))
        self._restore_model(saved.model, only_frozen=with_optimizer)
        self.iteration = common["iteration"]
        self.consumed_samples = common["consumed_train_samples"]
        self.skipped_steps = common["skipped_steps"]
        self.optimizer.skipped_in_a_row = common["skipped_in_a_row"]
        self.optimizer.clip.load_state_dict(common["clip"])
        self.engine.scheduler.restore(schedule.position_of(common))
        self.loader.load_state_dict(common["data"])
        if "held_out" in common:
            self.held_out.load_state_dict(common["held_out"])
        if with_optimizer:
            self._restore_optimizer(saved)
        else:
            self.engine.weights_changed()
            _missing("optimizer", common["optimizer"], "--no-load-optim")
        self.engine.publish()
        if self.optimizer.ema is not None:
            self._restore_ema(self.optimizer.ema, saved)
        if settings.load_rng and common["rng_state"] is not None:
            self._restore_rng(common["rng_state"])
        else:
            _missing("random numbers", common["rng_state"], "--no-load-rng")

    def take_weights(self, into_average: bool) -> None:
        """Adopts weights that were loaded into the network from a file. into_average: they also start the EMA."""
        self.engine.weights_changed()
        self.engine.publish()
        if into_average and self.optimizer.ema is not None:
            self.optimizer.ema.restart()

    def continue_at(self, iteration: int, samples: int, position: schedule.Position) -> None:
        """Continues at the iteration of another program's run, whose order of samples is unknown."""
        self.iteration, self.consumed_samples = iteration, samples
        self.engine.scheduler.restore(position)
        self.loader.seek(samples)
        if self.optimizer.ema is not None:
            self.optimizer.ema.updates = position.updates

    @torch.no_grad()
    def _restore_model(self, model: Weights, only_frozen: bool) -> None:
        """only_frozen: the trained parameters come from the optimizer's fp32 weights."""
        parameters, parallel = self.saved_parameters(), self.engine.parallel
        different = sorted(set(model) ^ set(parameters))
        shapes = {name: model.part_shape(name, parallel.tensor_size) for name in parameters if name in model}
        wrong = [name for name, shape in shapes.items() if shape != parameters[name].shape]
        if different or wrong:
            raise CheckpointError(
                f"the checkpoint is of another network: it differs in {(different + wrong)[0]} "
                f"({len(different)} other names, {len(wrong)} other shapes); use the model JSON that it was trained with"
            )
        for name, parameter in parameters.items():
            if not (only_frozen and parameter.requires_grad):
                model.copy_into(parameter, name, parallel.tensor_rank, parallel.tensor_size)
        model.report()

    def _restore_optimizer(self, saved: Saved) -> None:
        self.engine.load_counters(saved.common["optimizer"])
        main = [shard.main for shard in self.engine.main_shards()]
        for key, values in {"param": main, **self.engine.moments()}.items():
            self._restore_shards(saved.optimizer[key], values)

    @torch.no_grad()
    def _restore_shards(self, whole: Weights, values: list[Tensor]) -> None:
        """Reads this rank's parts of whole tensors. values: one for each of the engine's shards."""
        parallel = self.engine.parallel
        for shard, value in zip(self.engine.main_shards(), values, strict=True):
            whole.copy_range(value, shard.name, shard.start, parallel.tensor_rank, parallel.tensor_size)
            parallel.pulse.beat("reading a part of a checkpoint")

    def _restore_ema(self, ema: Ema, saved: Saved) -> None:
        if saved.common["ema_updates"] is None:
            _log.warning("the checkpoint holds no EMA; it starts from these weights")
            ema.restart()
            return
        ema.updates = saved.common["ema_updates"]
        self._restore_shards(saved.optimizer["ema_params"], ema.averages())

    def _restore_rng(self, everyone: list[dict]) -> None:
        group = self.engine.parallel.data_and_context
        if len(everyone) != group.size():
            # Another layout has other ranks, so these states do not apply. Draws in this package are addressed, not
            # counted.
            return
        torch.set_rng_state(everyone[group.rank()]["torch"])
        self.engine.platform.set_rng_state(everyone[group.rank()]["device"])


def _missing(what: str, saved: object, flag: str) -> None:
    _log.warning(f"continues without the state of the {what} ({'it was not saved' if saved is None else flag})")


def _check_trained(saved: object, now: dict) -> None:
    """Raises CheckpointError if a run trains other parameters than its checkpoint has optimizer state of."""
    then = vars(saved) if isinstance(saved, argparse.Namespace) else {}
    for name in ("train_only", "freeze"):
        before, after = tuple(then.get(name) or ()), tuple(now.get(name) or ())
        if before != after:
            flag = f"--{name.replace('_', '-')}"
            raise CheckpointError(
                f"{flag} was {' '.join(before) or 'not given'}, and is {' '.join(after) or 'not given'} now: the checkpoint "
                "has no optimizer state of the same parameters; give the same, or --no-load-optim"
            )


def _changed_flags(saved: object, now: dict) -> list[str]:
    """Lists changed flags, for example "--seed 1 -> 2". Flags that only say where a run loads and saves are left out."""
    then = vars(saved) if isinstance(saved, argparse.Namespace) else {}
    return [
        f"--{name.replace('_', '-')} {then[name]} -> {value}"
        for name, value in now.items()
        if name in then and then[name] != value and name not in ("save", "load") and not isinstance(then[name], Inert)
    ]
