"""State of a training run: collected into plain values for a checkpoint, and restored from them at any layout."""

import argparse
import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.adapters.attach import adapter_names
from mindspeed_mm.adapters.record import AdapterRecord, check_same
from mindspeed_mm.config import distillation
from mindspeed_mm.config.distillation import Distilled
from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.data.feed.loader import Loader
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files.trusted import Inert
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.optim.step import OptimizerStep
from mindspeed_mm.parallel import schedule, shards
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.parallel.partition import partition_dims

_log = logs.get(__name__)
_CHECKPOINT_VERSION = 3.0  # Megatron's version number for this layout

Named = dict[str, Tensor]


@dataclasses.dataclass(slots=True)
class Snapshot:
    """State of a run at one iteration, as one TP rank holds it, on the CPU.

    common: plain values. model: parameters in the model's precision. optimizer: "param", "exp_avg", "exp_avg_sq" and,
    with EMA, "ema_params", each a dict from parameter name to fp32 tensor; None if it is not saved.
    """

    common: dict
    model: Named
    optimizer: dict[str, Named] | None


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

    # --------------------------------------------------------------------------------------------------------- collect

    def collect(self) -> Snapshot | None:
        """Collects the current state on the first data rank of each TP rank; None on other ranks; collective.

        All tensors are copies, so training may continue while they are written.
        """
        settings = self.settings
        self.engine.publish()
        main = self.engine.main_shards()
        values: dict[str, list[Tensor]] = {}
        if settings.save_optimizer:
            values = {"param": [shard.main for shard in main], **self.engine.moments()}
        if self.optimizer.ema is not None:
            values["ema_params"] = self.optimizer.ema.averages()
        gathered = {key: shards.gather(main, group) for key, group in values.items()}
        groups = {key: group for key, group in gathered.items() if group is not None}
        common = self._common(self._gather_rng() if settings.save_rng else None)
        if self.engine.parallel.data_and_context.rank() != 0:
            return None
        model = {name: value.detach().cpu().clone() for name, value in self.saved_parameters().items()}
        return Snapshot(common, model, groups or None)

    def saved_parameters(self) -> Named:
        """The parameters that a checkpoint holds: those of the network, or of its adapter alone."""
        every: Named = dict(self.engine.network.named_parameters())
        return every if self.adapter is None else {name: every[name] for name in adapter_names(every)}

    def _common(self, rng: list[dict] | None) -> dict:
        ema = self.optimizer.ema
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
            "opt_param_scheduler": self.engine.scheduler.state_dict(),
            "rng_state": rng,
            "adapter": None if self.adapter is None else self.adapter.plain(),
            distillation.DISTILLED: None if self.distilled is None else self.distilled.plain(),
            "optimizer": self.engine.counters() if self.settings.save_optimizer else None,
        }

    def _gather_rng(self) -> list[dict]:
        """Torch's random state of every rank that shares this TP rank's file."""
        mine = {"torch": torch.get_rng_state(), "device": self.engine.platform.rng_state()}
        group = self.engine.parallel.data_and_context
        everyone: list = [None] * group.size()
        dist.all_gather_object(everyone, mine, group=group)
        return everyone

    # --------------------------------------------------------------------------------------------------------- restore

    def restore(self, snapshot: Snapshot) -> None:
        """Restores a snapshot; collective. Its optimizer tensors are needed on the first data rank, its model on all."""
        settings, common = self.settings, snapshot.common
        changed = _changed_flags(common["args"], dict(self.flags))
        if changed:
            _log.info(f"flags that have changed since the checkpoint: {', '.join(changed)}")
        check_same(self.adapter, common.get("adapter"))
        distillation.check_same(self.distilled, common.get(distillation.DISTILLED))
        if settings.load_optimizer and common["optimizer"] is not None:
            _check_trained(common["args"], dict(self.flags))
        self._restore_model(snapshot.model)
        self.iteration = common["iteration"]
        self.consumed_samples = common["consumed_train_samples"]
        self.skipped_steps = common["skipped_steps"]
        self.optimizer.skipped_in_a_row = common["skipped_in_a_row"]
        self.optimizer.clip.load_state_dict(common["clip"])
        self.engine.scheduler.restore(schedule.position_of(common))
        self.loader.load_state_dict(common["data"])
        if settings.load_optimizer and common["optimizer"] is not None:
            self._restore_optimizer(snapshot)
        else:
            self.engine.weights_changed()
            _missing("optimizer", common["optimizer"], "--no-load-optim")
        self.engine.publish()
        if self.optimizer.ema is not None:
            self._restore_ema(self.optimizer.ema, snapshot)
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
    def _restore_model(self, model: Named) -> None:
        parameters = self.saved_parameters()
        found = {name: value for name, value in model.items() if isinstance(value, Tensor)}
        different = sorted(set(found) ^ set(parameters))
        wrong = [name for name in parameters if name in found and found[name].shape != parameters[name].shape]
        if different or wrong:
            raise CheckpointError(
                f"the checkpoint is of another network: it differs in {(different + wrong)[0]} "
                f"({len(different)} other names, {len(wrong)} other shapes); use the model JSON that it was trained with"
            )
        for name, parameter in parameters.items():
            parameter.copy_(found[name])

    def _restore_optimizer(self, snapshot: Snapshot) -> None:
        self.engine.load_counters(snapshot.common["optimizer"])
        main = self.engine.main_shards()
        whole = snapshot.optimizer or {}
        shards.scatter(whole.get("param"), main, [shard.main for shard in main])
        for key, values in self.engine.moments().items():
            shards.scatter(whole.get(key), main, values)

    def _restore_ema(self, ema: Ema, snapshot: Snapshot) -> None:
        if snapshot.common["ema_updates"] is None:
            _log.warning("the checkpoint holds no EMA; it starts from these weights")
            ema.restart()
            return
        ema.updates = snapshot.common["ema_updates"]
        main = self.engine.main_shards()
        whole = (snapshot.optimizer or {}).get("ema_params")
        shards.scatter(whole, main, [ema.shards[shard.name] for shard in main])

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
