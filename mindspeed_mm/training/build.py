"""From a RunConfig to a Trainer: every part is built here and handed to those that need it."""

import os
from collections.abc import Callable

import torch

from mindspeed_mm import logs
from mindspeed_mm.config.model import AutoencoderConfig, DenoiserConfig
from mindspeed_mm.config.run import RunConfig
from mindspeed_mm.data.loader import Loader, build_loader
from mindspeed_mm.models.build import TORCH_DTYPES, build_autoencoder, build_denoiser
from mindspeed_mm.models.sparse_ummdit.model import SparseUMMDiT
from mindspeed_mm.models.text.encoders import TextEncoders
from mindspeed_mm.optim.adaptive_clip import AdaptiveClip, FixedClip
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.optim.step import OptimizerStep
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.training.encoders import FrozenEncoders
from mindspeed_mm.training.evaluation import Evaluation
from mindspeed_mm.training.state import TrainingState
from mindspeed_mm.training.step import TrainStep
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.training.trainer import Sampler, Trainer
from mindspeed_mm.weights import load_autoencoder, load_denoiser

_log = logs.get(__name__)


def build_trainer(
    config: RunConfig,
    platform: Platform,
    parallel: ParallelContext,
    build_sampler: Callable[[Engine, Ema | None, FrozenEncoders], Sampler] | None = None,
) -> Trainer:
    """Everything for a run, on this rank's device; collective. build_sampler: makes videos while training, if given."""
    device = platform.device(int(os.environ.get("LOCAL_RANK", "0")))
    loader = _loader(config, parallel)
    encoders = _encoders(config, device)
    network = _denoiser(config, parallel, device)
    engine = Engine(network, parallel, platform, config.optimizer)
    engine.schedule(config.global_batch_size)
    optimizer = _optimizer_step(config, engine)
    micro_batches = config.global_batch_size // (config.micro_batch_size * parallel.data_size)
    task = FlowMatchingTask(config.model.diffusion, config.model.predictor, config.seed)
    step = TrainStep(engine, encoders, task, optimizer, micro_batches, config.global_batch_size)
    evaluation = None
    if config.evaluation.data_path is not None:
        held_out = _loader(config, parallel, held_out=True)
        evaluation = Evaluation(engine, optimizer.ema, encoders, task, held_out, config.evaluation.iterations)
    sampler = build_sampler(engine, optimizer.ema, encoders) if build_sampler is not None else None
    state = TrainingState(engine, optimizer, loader, config.checkpoint, config.flags)
    return Trainer(config, step, state, evaluation, sampler)


def _loader(config: RunConfig, parallel: ParallelContext, held_out: bool = False) -> Loader:
    return build_loader(
        config.data,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        dp_rank=parallel.data_rank,
        dp_size=parallel.data_size,
        seed=config.seed,
        autoencoder_strides=config.model.ae.strides,
        patch_size=config.model.predictor.patch_size,
        data_path=config.evaluation.data_path if held_out else None,
        evaluation=held_out,
    )


def _encoders(config: RunConfig, device: torch.device) -> FrozenEncoders:
    model = config.model
    autoencoder = frozen_autoencoder(model.ae, device, config.precision.autoencoder)
    dtype = TORCH_DTYPES[config.precision.text_encoders]
    text = TextEncoders(model.text_encoder, model.text_encoder_2, dtype).to(device)
    return FrozenEncoders(autoencoder, text, device, config.seed)


def frozen_autoencoder(config: AutoencoderConfig, device: torch.device, dtype: str):
    """The autoencoder with its published weights."""
    autoencoder = build_autoencoder(config, device=device, dtype=dtype)
    load_autoencoder(autoencoder, config.from_pretrained)
    return autoencoder


def _denoiser(config: RunConfig, parallel: ParallelContext, device: torch.device) -> SparseUMMDiT:
    predictor: DenoiserConfig = config.model.predictor
    network = build_denoiser(
        predictor,
        parallel,
        device=device,
        dtype=config.precision.denoiser,
        seed=None if predictor.from_pretrained else config.seed,
        recompute_blocks=config.recompute_blocks,
        recompute_feed_forwards=config.recompute_feed_forwards,
    )
    if predictor.from_pretrained:
        load_denoiser(network, predictor.from_pretrained)
    if config.compile:
        network.compile_blocks()
    count = sum(parameter.numel() for parameter in network.parameters())
    _log.info(f"denoiser: {count:,} parameters on this rank, {config.precision.denoiser}")
    return network


def _optimizer_step(config: RunConfig, engine: Engine) -> OptimizerStep:
    settings = config.optimizer
    adaptive = settings.clip_grad_ema_decay is not None
    clip = AdaptiveClip(settings.clip_grad_ema_decay) if adaptive else FixedClip(settings.clip_grad)
    ema = Ema(engine, settings.ema_decay) if settings.use_ema else None
    return OptimizerStep(engine, clip, ema, settings.max_skipped_steps)
