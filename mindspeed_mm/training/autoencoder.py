"""Training of the autoencoder: its objective, and the builder of a Trainer for it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.config.autoencoder import AutoencoderRunConfig
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.files import torch_state
from mindspeed_mm.models.build import build_autoencoder
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.parallel import partition
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.parallel.meeting import meet
from mindspeed_mm.parallel.megatron_engine import MegatronEngine
from mindspeed_mm.parallel.seeds import derive, generator
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.training.autoencoder_loss import AutoencoderLoss
from mindspeed_mm.training.autoencoder_quality import HeldOutQuality
from mindspeed_mm.training.build import local_device, micro_batches, optimizer_step
from mindspeed_mm.training.data import RunData
from mindspeed_mm.training.encoders import per_sample_noise
from mindspeed_mm.training.metrics import Work
from mindspeed_mm.training.saving import Saver
from mindspeed_mm.training.state import TrainingState
from mindspeed_mm.training.step import Loss, TrainStep
from mindspeed_mm.training.trainer import Trainer
from mindspeed_mm.types import TORCH_DTYPES, Batch
from mindspeed_mm.weights import load_autoencoder

_log = logs.get(__name__)
_FRESH_LOGVAR = -6.0  # log-variance of fresh posteriors: noise of deviation 1 would drown their weak latents


def build_autoencoder_trainer(config: AutoencoderRunConfig, platform: Platform, parallel: ParallelContext) -> Trainer:
    """Builds all parts of a run of the autoencoder on this rank's device; collective."""
    device = local_device(platform)
    parallel.pulse.patience_s = 60 * config.report.hang_minutes
    data = RunData(config, config.data, parallel, config.autoencoder.strides)
    loader = data.train()
    network = AutoencoderLoss(_autoencoder(config, device), config.loss)
    partition.mark(network, ())
    meet("loading weights", parallel)
    engine = MegatronEngine(network, parallel, platform, config.optimizer)
    engine.schedule(config.global_batch_size)
    optimizer = optimizer_step(config.optimizer, engine)
    objective = Autoencoding(config.autoencoder, config.seed, device)
    step = TrainStep(engine, objective, optimizer, micro_batches(config, parallel))
    saver = Saver(TrainingState(engine, optimizer, loader, config.checkpoint, config.flags))
    evaluation = export = None
    if config.evaluation.data_path is not None:
        held_out, iterations = data.held_out(config.evaluation.data_path), config.evaluation.iterations
        evaluation = HeldOutQuality(engine, optimizer.ema, network.autoencoder, held_out, iterations)
    if config.export is not None:
        dtype = TORCH_DTYPES[config.export_dtype]
        export = Export(engine, optimizer.ema, network.autoencoder, Path(config.export), dtype)
    return Trainer(config, step, saver, evaluation=evaluation, export=export)


class Autoencoding:
    """Reconstruction of a micro-batch's clips, with posterior noise and dropout seeded per clip."""

    def __init__(self, config: WFVAEConfig, seed: int, device: torch.device):
        self.config = config
        self.seed = seed
        self.device = device

    def __call__(self, network: Callable[..., Any], batch: Batch) -> Loss:
        batch = batch.to(self.device)
        loss, parts = network(batch.clips, self._noise(batch), self._draws(batch))
        return Loss(loss, Work(samples=len(batch.addresses)), batch.paths, parts)

    def _noise(self, batch: Batch) -> Tensor:
        """Posterior noise [B,C,t,h,w]."""
        _, _, frames, height, width = batch.clips.shape
        grid = LatentGrid.of_video(frames, height, width, self.config.strides)
        like = batch.clips.new_empty(grid.shape(len(batch.addresses), self.config.latent_dim))
        return per_sample_noise(like, self.seed, "posterior", batch.addresses)

    def _draws(self, batch: Batch) -> list[torch.Generator] | None:
        """Generators of dropout, one per clip; None without dropout."""
        if self.config.dropout == 0:
            return None
        return [generator(self.seed, "dropout", *place, device=self.device) for place in batch.addresses]


class Export:
    """Writes the averaged weights, or the live ones without EMA, as one flat state dict; collective."""

    def __init__(self, engine: Engine, ema: Ema | None, autoencoder: WFVAE, path: Path, dtype: torch.dtype):
        self.engine = engine
        self.ema = ema
        self.autoencoder = autoencoder
        self.path = path
        self.dtype = dtype

    def __call__(self) -> None:
        main = self.engine.main_shards()
        values = [shard.main for shard in main] if self.ema is None else self.ema.averages()
        with self.engine.weights_of(values):
            weights = {name: value.to("cpu", self.dtype) for name, value in self.autoencoder.state_dict().items()}
        if self.engine.parallel.is_first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch_state.save(weights, self.path)
            _log.info(f"wrote {self.path}: {len(weights)} tensors, {self.path.stat().st_size / 2**20:.2f} MiB")


def _autoencoder(config: AutoencoderRunConfig, device: torch.device) -> WFVAE:
    """The autoencoder with published or fresh weights, set to train on whole clips."""
    whole = dataclasses.replace(config.autoencoder, use_tiling=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "autoencoder"))
        autoencoder = build_autoencoder(whole, device=device, dtype=config.dtype)
    bias = autoencoder.encoder.conv_out.conv.bias
    assert bias is not None
    with torch.no_grad():
        bias[whole.latent_dim :].fill_(_FRESH_LOGVAR)
    if whole.from_pretrained is not None:
        load_autoencoder(autoencoder, whole.from_pretrained)
    return autoencoder
