"""Training of the autoencoder: reuses the denoiser's engine, update, EMA and checkpoints, with another loss."""

import dataclasses
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from mindspeed_mm import logs
from mindspeed_mm.config.autoencoder import AutoencoderRunConfig
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.data.feed.loader import build_loader
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import torch_state
from mindspeed_mm.models.build import build_autoencoder
from mindspeed_mm.optim.adaptive_clip import FixedClip
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.optim.step import OptimizerStep, StepReport
from mindspeed_mm.parallel import partition
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.parallel.seeds import derive, generator
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.stopping import Reason, StopRequest
from mindspeed_mm.training import beginning, signals
from mindspeed_mm.training.autoencoder_loss import AutoencoderObjective
from mindspeed_mm.training.encoders import per_sample_noise
from mindspeed_mm.training.saving import Saver
from mindspeed_mm.training.state import TrainingState
from mindspeed_mm.types import TORCH_DTYPES, Batch
from mindspeed_mm.weights import load_autoencoder

_log = logs.get(__name__)
_FRESH_LOGVAR = -6.0  # log-variance of fresh posteriors: noise of deviation 1 would drown their weak latents
Parts = dict[str, Tensor]


class AutoencoderTrainer:
    """Runs `train_iters` steps, from the latest checkpoint of --load if there is one, then exports the weights."""

    def __init__(self, config: AutoencoderRunConfig, platform: Platform, parallel: ParallelContext):
        """Builds all parts on this rank's device; collective."""
        self.config = config
        self.parallel = parallel
        self.device = platform.device(int(os.environ.get("LOCAL_RANK", "0")))
        loader = build_loader(
            config.data,
            global_batch_size=config.global_batch_size,
            micro_batch_size=config.micro_batch_size,
            dp_rank=parallel.data_rank,
            dp_size=parallel.data_size,
            seed=config.seed,
            autoencoder_strides=config.autoencoder.strides,
            patch_size=1,
        )
        self.objective = AutoencoderObjective(_autoencoder(config, self.device), config.loss)
        partition.mark(self.objective, ())
        self.engine = Engine(self.objective, parallel, platform, config.optimizer)
        self.engine.schedule(config.global_batch_size)
        ema = Ema(self.engine, config.optimizer.ema_decay) if config.optimizer.use_ema else None
        self.optimizer = OptimizerStep(self.engine, FixedClip(config.optimizer.clip_grad), ema, max_skipped_steps=5)
        self.state = TrainingState(self.engine, self.optimizer, loader, config.checkpoint, config.flags)
        self.saver = Saver(self.state)
        self.micro_batches = config.global_batch_size // (config.micro_batch_size * parallel.data_size)

    def fit(self, request: StopRequest | None = None) -> Reason | None:
        """Trains to the end, or until a signal asks to stop, and exports the weights. Returns the reason of an early
        end.

        request: receives this process's signals; None ignores signals.
        """
        request = request or StopRequest()
        config, state = self.config, self.state
        self._resume()
        batches = iter(state.loader)
        self.objective.train()
        first = state.iteration
        every = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file gets fewer lines than a terminal
        hidden = not self.parallel.is_first
        ending = signals.agreed(request.signal())
        with tqdm(
            total=config.train_iters, initial=first, desc="autoencoder", unit="step", disable=hidden, mininterval=every
        ) as bar:
            while ending is None and state.iteration < config.train_iters:
                parts, report = self._step(batches)
                state.iteration += 1
                state.consumed_samples += config.global_batch_size
                bar.update()
                self._log(parts, report)
                self.optimizer.check()
                ending = signals.agreed(request.signal())
                if self._save_is_due():
                    self._save(last=ending is not None or state.iteration == config.train_iters)
        trained = state.iteration > first
        if ending is not None:
            saves = config.checkpoint.save is not None and trained
            _log.info(signals.announcement(ending, state.iteration, saves, trained))
            if saves and not self._save_is_due():
                self._save(last=True)
        self.saver.complete()
        if config.export is not None and (trained or ending is None):
            self.export(Path(config.export))
        return ending

    def _step(self, batches) -> tuple[Parts, StepReport]:
        """Performs one update. Returns the loss and its parts, averaged over the global batch."""
        self.engine.start_step()
        total: Parts = {}
        for index in range(self.micro_batches):
            batch: Batch = next(batches).to(self.device)
            with self.engine.micro_batch(last=index == self.micro_batches - 1):
                loss, parts = self.engine.ddp(batch.video, self._noise(batch), self._draws(batch))
                self.engine.backward(loss / self.micro_batches)
            for name, value in {"loss": loss.detach(), **parts}.items():
                total[name] = total.get(name, 0) + value / self.micro_batches
        return total, self.optimizer()

    def _noise(self, batch: Batch) -> Tensor:
        """Posterior noise, seeded per clip."""
        config = self.config.autoencoder
        grid = LatentGrid.of_video(*batch.video.shape[2:], config.strides)
        like = batch.video.new_empty(grid.shape(len(batch.addresses), config.latent_dim))
        return per_sample_noise(like, self.config.seed, "posterior", batch.addresses)

    def _draws(self, batch: Batch) -> list[torch.Generator] | None:
        """Generators of dropout, one seeded per clip; None without dropout."""
        if self.config.autoencoder.dropout == 0:
            return None
        return [generator(self.config.seed, "dropout", *place, device=self.device) for place in batch.addresses]

    def _log(self, parts: Parts, report: StepReport) -> None:
        iteration, config = self.state.iteration, self.config
        if report.skipped is not None:
            _log.warning(f"iteration {iteration}: skipped, {report.skipped}")
        if iteration % config.log_interval and iteration != config.train_iters:
            return
        means = torch.stack(list(parts.values()))
        dist.all_reduce(means, group=self.parallel.data)
        values = (means / self.parallel.data_size).tolist()
        _log.info(
            f"iteration {iteration}/{config.train_iters} | learning rate: {report.learning_rate:.3E} | "
            + " | ".join(f"{name}: {value:.6f}" for name, value in zip(parts, values, strict=True))
            + f" | grad norm: {report.gradient_norm:.4f}"
        )

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def _resume(self) -> None:
        checkpoint = self.config.checkpoint
        if checkpoint.load is not None and not self.saver.resume(Path(checkpoint.load)):
            beginning.refuse_empty(checkpoint)

    def _save_is_due(self) -> bool:
        iteration, checkpoint = self.state.iteration, self.config.checkpoint
        return iteration % checkpoint.save_interval == 0 or iteration == self.config.train_iters

    def _save(self, last: bool) -> None:
        """Saves now. An error such as a full disk ends the run only if no later save is planned."""
        if self.config.checkpoint.save is None:
            return
        try:
            self.saver.save()
        except CheckpointError as error:
            if last:
                raise
            _log.error(f"{error}; training goes on, the next save is at its interval")
            return
        _log.info(f"saved iteration {self.state.iteration} to {self.config.checkpoint.save}")

    def export(self, path: Path) -> None:
        """Writes the averaged weights, or the live ones without EMA, as one flat state dict; collective."""
        main, ema = self.engine.main_shards(), self.optimizer.ema
        values = [shard.main if ema is None else ema.shards[shard.name] for shard in main]
        dtype = TORCH_DTYPES[self.config.export_dtype]
        with self.engine.weights_of(values):
            weights = {name: value.to("cpu", dtype) for name, value in self.objective.autoencoder.state_dict().items()}
        if self.parallel.is_first:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch_state.save(weights, path)
            _log.info(f"wrote {path}: {len(weights)} tensors, {path.stat().st_size / 2**20:.2f} MiB")


def _autoencoder(config: AutoencoderRunConfig, device: torch.device):
    """The autoencoder with published or fresh weights, set to train on whole clips."""
    whole = dataclasses.replace(config.autoencoder, use_tiling=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "autoencoder"))
        autoencoder = build_autoencoder(whole, device=device, dtype=config.dtype)
    with torch.no_grad():
        autoencoder.encoder.conv_out.conv.bias[whole.latent_dim :].fill_(_FRESH_LOGVAR)
    if whole.from_pretrained is not None:
        load_autoencoder(autoencoder, whole.from_pretrained)
    return autoencoder
