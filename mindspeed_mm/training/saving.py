"""What a training run is, as one checkpoint: put together here, taken apart here."""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import files, state
from mindspeed_mm.config.run import CheckpointConfig, RunConfig
from mindspeed_mm.data.loader import Loader
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.optim.step import OptimizerStep
from mindspeed_mm.parallel import shards
from mindspeed_mm.parallel.engine import Engine

_log = logs.get(__name__)
_CHECKPOINT_VERSION = 3.0  # Megatron's number for this layout


class TrainingState:
    """Everything that has to survive: weights, EMA, optimizer, schedule, clipping, random numbers, place in the data."""

    def __init__(self, config: RunConfig, engine: Engine, optimizer: OptimizerStep, loader: Loader):
        self.config = config
        self.engine = engine
        self.optimizer = optimizer
        self.loader = loader
        self.iteration = 0
        self.consumed_samples = 0

    # ------------------------------------------------------------------------------------------------------------ save

    def save(self, root: Path) -> Path:
        """Write a checkpoint of the current iteration under `root`; collective."""
        settings: CheckpointConfig = self.config.checkpoint
        ema = self._gather_ema()
        optimizer = self._gather_optimizer() if settings.save_optimizer else None
        rng = self._gather_rng() if settings.save_rng else None
        model = None
        if self.engine.parallel.data_and_context.rank() == 0:
            model = {
                "args": argparse.Namespace(**dict(self.config.flags)),
                "checkpoint_version": _CHECKPOINT_VERSION,
                "iteration": self.iteration,
                "consumed_train_samples": self.consumed_samples,
                "model": self.engine.network.state_dict(),
                "clip": self.optimizer.clip.state_dict(),
                "skipped_in_a_row": self.optimizer.skipped_in_a_row,
                "data": self.loader.state_dict(),
                "rng_state": rng,
                "optimizer": self.engine.counters() if settings.save_optimizer else None,
            }
            if ema is not None:
                model["ema_model"] = self._as_model(ema)
                model["ema_updates"] = self.optimizer.ema.updates
                if optimizer is not None:
                    optimizer["ema_params"] = ema
        return state.write(root, self.iteration, model, optimizer, self.engine.parallel)

    def _gather_optimizer(self) -> dict[str, dict[str, Tensor]] | None:
        main = self.engine.main_shards()
        whole = {"param": shards.gather(main, [shard.main for shard in main])}
        for key, values in self.engine.moments().items():
            whole[key] = shards.gather(main, values)
        return whole if whole["param"] is not None else None

    def _gather_ema(self) -> dict[str, Tensor] | None:
        ema = self.optimizer.ema
        if ema is None:
            return None
        main = self.engine.main_shards()
        return shards.gather(main, [ema.shards[shard.name] for shard in main])

    def _as_model(self, ema: dict[str, Tensor]) -> dict:
        """The averages under the names and in the precision of the model, as the original saves them."""
        return {
            name: ema[name].to(value.dtype) if name in ema else value
            for name, value in self.engine.network.state_dict().items()
        }

    def _gather_rng(self) -> list[dict] | None:
        """Torch's random numbers of every rank that shares this TP rank's file."""
        mine = {"torch": torch.get_rng_state(), "device": self.engine.platform.rng_state()}
        group = self.engine.parallel.data_and_context
        everyone: list = [None] * group.size()
        dist.all_gather_object(everyone, mine, group=group)
        return everyone

    # ------------------------------------------------------------------------------------------------------------ load

    def load(self, root: Path) -> None:
        """Continue from the latest checkpoint under `root`; collective."""
        settings: CheckpointConfig = self.config.checkpoint
        model, optimizer_file = state.read(root, self.engine.parallel)
        try:
            self.engine.network.load_state_dict(model["model"])
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{root}: the checkpoint is of another network ({reason})") from None
        self.iteration = model["iteration"]
        self.consumed_samples = model["consumed_train_samples"]
        self.loader.load_state_dict(model["data"])
        self.optimizer.clip.load_state_dict(model["clip"])
        self.optimizer.skipped_in_a_row = model["skipped_in_a_row"]
        if settings.load_optimizer and model["optimizer"] is not None and optimizer_file is not None:
            self.engine.load_counters(model["optimizer"])
            self._scatter_optimizer(optimizer_file, model.get("ema_updates"))
        else:
            self.engine.weights_changed()
            if self.optimizer.ema is not None:
                self.optimizer.ema.restart()
            _log.warning(f"{root}: continues without the optimizer's state (not saved, or --no-load-optim)")
        if settings.load_rng and model["rng_state"] is not None:
            self._restore_rng(model["rng_state"])

    def _scatter_optimizer(self, file: Path, ema_updates: int | None) -> None:
        first = self.engine.parallel.data_and_context.rank() == 0
        whole = files.load(file) if first else {}
        main = self.engine.main_shards()
        shards.scatter(whole.get("param"), main, [shard.main for shard in main])
        for key, values in self.engine.moments().items():
            shards.scatter(whole.get(key), main, values)
        ema = self.optimizer.ema
        if ema is None:
            return
        if ema_updates is None:
            _log.warning("the checkpoint holds no EMA; it starts from these weights")
            ema.restart()
            return
        ema.updates = ema_updates
        shards.scatter(whole.get("ema_params"), main, [ema.shards[shard.name] for shard in main])

    def _restore_rng(self, everyone: list[dict]) -> None:
        rank = self.engine.parallel.data_and_context.rank()
        if len(everyone) != self.engine.parallel.data_and_context.size():
            return  # another layout: the states belong to no rank of it; draws of ours are addressed, not counted
        torch.set_rng_state(everyone[rank]["torch"])
        self.engine.platform.set_rng_state(everyone[rank]["device"])
