"""Builds the Trainer of a denoiser's run: creates each part and passes it to the parts that use it."""

import functools
import os
from collections.abc import Callable

import torch

from mindspeed_mm import families, logs
from mindspeed_mm.adapters.attach import attach_trained
from mindspeed_mm.adapters.base import hold_base, loads_on_host
from mindspeed_mm.adapters.record import AdapterRecord
from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.config.run import RunConfig, TrainingFlags
from mindspeed_mm.config.trained import TrainedConfig, lr_factors, trained_names
from mindspeed_mm.data.feed.dataset import load_tokens
from mindspeed_mm.families.adapters import is_adapter, plain_name
from mindspeed_mm.families.base import DenoiserConfig
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.models.denoiser import Denoiser
from mindspeed_mm.models.float8 import use_float8
from mindspeed_mm.models.text.encoders import TextEncoders
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.optim.adaptive_clip import AdaptiveClip, FixedClip
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.optim.step import OptimizerStep
from mindspeed_mm.parallel.collectives import from_first_rank
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.parallel.host_inputs import HostInputs
from mindspeed_mm.parallel.meeting import meet
from mindspeed_mm.parallel.megatron_engine import MegatronEngine
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.training.denoiser_data import DenoiserData
from mindspeed_mm.training.denoising import Denoising, TrainedShares
from mindspeed_mm.training.encoder_sharing import SharedEncoders
from mindspeed_mm.training.encoders import FrozenEncoders
from mindspeed_mm.training.evaluation import Evaluation, encoded, losses
from mindspeed_mm.training.extraction import Extraction
from mindspeed_mm.training.memory_forecast import MemoryForecast
from mindspeed_mm.training.saving import Saver
from mindspeed_mm.training.state import TrainingState
from mindspeed_mm.training.step import TrainStep
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.training.teaching import build_task
from mindspeed_mm.training.trainer import Sampler, Trainer
from mindspeed_mm.types import TORCH_DTYPES
from mindspeed_mm.weights import load_autoencoder, load_denoiser
from mindspeed_mm.weights.adapters import fingerprint_of, load_trained_adapter
from mindspeed_mm.weights.encoders import check_encoders, check_widths

_log = logs.get(__name__)


def build_trainer(
    config: RunConfig,
    platform: Platform,
    parallel: ParallelContext,
    build_sampler: Callable[[Engine, Ema | None, FrozenEncoders], Sampler] | None = None,
) -> Trainer:
    """Builds all parts of a run on this rank's device; collective. build_sampler: optional factory of videos while
    training.
    """
    device = local_device(platform)
    parallel.pulse.patience_s = 60 * config.report.hang_minutes
    if not config.model.load_text_features:
        check_widths(config.model)
    forecast = MemoryForecast.of_run(config, parallel, platform)
    if forecast is not None:
        forecast.warn_if_too_large()
    data = DenoiserData(config, parallel)
    loader = data.train()
    encoders = _encoders(config, device)
    parallel.pulse.beat("loading the encoders")
    network, adapter = _denoiser(config, parallel, platform, device)
    task, distilled = build_task(config, network, encoders)
    # the engine's collectives have a time limit, and a rank with a slow disk may come late
    meet("loading weights", parallel)
    engine = MegatronEngine(
        network, parallel, platform, config.optimizer, network.units(), _lr_factors(network, config)
    )
    engine.schedule(config.global_batch_size)
    optimizer = optimizer_step(config.optimizer, engine)
    shared = SharedEncoders(encoders, parallel, data.hosts) if data.shares_encoders else encoders
    objective = Denoising(shared, task, TrainedShares.of(network))
    step = TrainStep(engine, objective, optimizer, micro_batches(config, parallel))
    evaluation = None
    if config.evaluation.data_path is not None:
        held_out, iterations = data.held_out(config.evaluation.data_path), config.evaluation.iterations
        training = data.held_out(None) if config.evaluation.overfit_check else None
        evaluation = Evaluation(engine, optimizer.ema, encoders, task, held_out, iterations, training)
    sampler = build_sampler(engine, optimizer.ema, encoders) if build_sampler is not None else None
    state = TrainingState(engine, optimizer, loader, config.checkpoint, config.flags, adapter, distilled)
    read_weights = load_denoiser if adapter is None else load_trained_adapter
    saver = Saver(state, functools.partial(read_weights, network))
    return Trainer(config, step, saver, evaluation=evaluation, sampler=sampler, forecast=forecast)


def build_extraction(config: RunConfig, platform: Platform, parallel: ParallelContext) -> Extraction:
    """Builds the job that fills a run's feature folder, on this rank's device; collective."""
    device = local_device(platform)
    check_widths(config.model)
    autoencoder = frozen_autoencoder(config, device)
    text, images = frozen_text_encoders(config, device), config.data.dataset_param.image_conditions
    encoders = FrozenEncoders(autoencoder, text, device, config.seed, images)
    return Extraction(config, DenoiserData(config, parallel), encoders)


def held_out_loss(
    config: RunConfig, platform: Platform, parallel: ParallelContext, source: str, ema: bool
) -> dict[str, float]:
    """{"eval loss": ..., "eval loss sigma 0.0-0.2": ...} of weights on the run's held-out list; collective.

    source, ema: see `load_denoiser`. The same list, seed and batch give the loss that the run logged.
    """
    device, predictor = local_device(platform), config.model.predictor
    check_widths(config.model)
    loader = DenoiserData(config, parallel).held_out(config.evaluation.data_path)
    encoders, task = _encoders(config, device), FlowMatchingTask(config.model.diffusion, predictor, config.seed)
    network = build_denoiser(predictor, parallel, device=device, dtype=config.precision.denoiser, seed=None).eval()
    load_denoiser(network, source, ema)
    meet("loading weights", parallel)
    found = losses(network, encoded(loader, encoders, config.evaluation.iterations, parallel), task, parallel)
    return {f"eval loss{band}": loss for band, loss in found.items()}


def _encoders(config: RunConfig, device: torch.device) -> FrozenEncoders:
    """Encoders that stored features do not replace; videos while training need all encoders' weights."""
    model, samples = config.model, config.evaluation.sample_model is not None
    autoencoder = text = None
    if samples or not model.load_video_features:
        autoencoder = frozen_autoencoder(config, device)
    if samples or not model.load_text_features:
        text = frozen_text_encoders(config, device)
    if autoencoder is None:
        autoencoder = build_autoencoder(model.ae, device="meta")
        autoencoder.reset_statistics(device)
        autoencoder = autoencoder.to(TORCH_DTYPES[config.precision.autoencoder])
    return FrozenEncoders(autoencoder, text, device, config.seed, config.data.dataset_param.image_conditions)


def frozen_text_encoders(config: RunConfig, device: torch.device) -> TextEncoders:
    """T5 and CLIP with their published weights."""
    dtype = TORCH_DTYPES[config.precision.text_encoders]
    tokens, key = load_tokens(config.data.dataset_param), "dataset_param.tokenizer_config"
    check_encoders(config.model, tokens.tokenizers, (key, f"{key}_2"))
    return TextEncoders(config.model.text_encoder, config.model.text_encoder_2, dtype).to(device)


def frozen_autoencoder(config: RunConfig, device: torch.device) -> WFVAE:
    """The autoencoder with its published weights."""
    autoencoder = build_autoencoder(config.model.ae, device=device, dtype=config.precision.autoencoder)
    load_autoencoder(autoencoder, config.autoencoder_weights)
    return autoencoder


def _denoiser(
    config: RunConfig, parallel: ParallelContext, platform: Platform, device: torch.device
) -> tuple[Denoiser, AdapterRecord | None]:
    """The network, and what a checkpoint says of its adapter if the run trains one."""
    predictor: DenoiserConfig = config.model.predictor
    on_host = loads_on_host(config.adapter)
    network = build_denoiser(
        predictor,
        parallel,
        device="cpu" if on_host else device,
        dtype=config.precision.denoiser,
        seed=None if predictor.from_pretrained else config.seed,
        recompute_blocks=config.recompute.num_layers,
        recompute_feed_forwards=config.recompute.feed_forwards,
    )
    if predictor.from_pretrained:
        load_denoiser(network, predictor.from_pretrained)
    if on_host:
        hold_base(network, predictor, config.adapter, device, platform.copies())
    adapter = _with_adapter(network, config, parallel)
    if adapter is None:
        _freeze(network, config.trained)
    if config.fp8_format is not None:
        platform.check_float8(TORCH_DTYPES[config.precision.denoiser])
        count = use_float8(network, config.fp8_format, parallel)
        _log.info(f"{count} linears compute in float8 ({config.fp8_format})")
    if config.recompute.num_offloaded:
        network.keep_inputs_on_host(HostInputs(platform.copies(), config.recompute.num_offloaded))
    if config.compile:
        network.compile_blocks()
    count = sum(parameter.numel() for parameter in network.parameters())
    _log.info(f"denoiser: {count:,} parameters on this rank, {config.precision.denoiser}")
    return network, adapter


def _freeze(network: Denoiser, trained: TrainedConfig) -> None:
    """Freezes the parameters that the run does not train."""
    if not trained.only and not trained.frozen:
        return
    parameters = families.of_denoiser(network.config).parameters(network.config)
    names = set(trained_names(trained, parameters))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
    _log.info(f"{len(names)} of {len(parameters)} parameters are trained, the others are frozen")


def _lr_factors(network: Denoiser, config: RunConfig) -> dict[str, float]:
    """Factors of --lr-multiplier by the network's own names."""
    parameters = families.of_denoiser(network.config).parameters(network.config)
    found = lr_factors(config.trained, parameters, config.adapter)
    names = [name for name, _ in network.named_parameters()]
    return {name: found[plain] for name in names if (plain := _in_files(name)) in found}


def _in_files(name: str) -> str:
    return plain_name(name) if is_adapter(name) else name


def _with_adapter(network: Denoiser, config: RunConfig, parallel: ParallelContext) -> AdapterRecord | None:
    """Adds the adapter that the run trains and freezes the rest."""
    adapter, source = config.adapter, config.model.predictor.from_pretrained
    if adapter.kind is None or source is None:
        return None
    branches = attach_trained(network, config.model.predictor, adapter, parallel, config.seed)
    base = fingerprint_of(source) if parallel.is_first else None
    meet("the fingerprint of the base", parallel)
    count = sum(parameter.numel() for branch in branches.values() for parameter in branch.parameters())
    _log.info(
        f"{adapter.kind} of rank {adapter.rank} on {len(branches)} linears: {count:,} parameters on this rank are trained"
    )
    return AdapterRecord(adapter, config.model.predictor.model_id, from_first_rank(base), source)


def local_device(platform: Platform) -> torch.device:
    """This rank's device."""
    return platform.device(int(os.environ.get("LOCAL_RANK", "0")))


def micro_batches(config: TrainingFlags, parallel: ParallelContext) -> int:
    """Number of micro-batches per step on this rank."""
    return config.global_batch_size // (config.micro_batch_size * parallel.data_size)


def optimizer_step(settings: OptimizerSettings, engine: Engine) -> OptimizerStep:
    """The update of a run: its clipping and its EMA."""
    decay = settings.clip_grad_ema_decay
    clip = FixedClip(settings.clip_grad) if decay is None else AdaptiveClip(decay)
    ema = Ema(engine, settings.ema_decay, engine.platform.ema_adamw_kernel()) if settings.use_ema else None
    return OptimizerStep(engine, clip, ema, settings.max_skipped_steps)
