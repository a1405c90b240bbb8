"""argv and JSON files -> RunConfig, SampleConfig or ServeConfig, with every check of one setting against another.

All of it happens before a process group or a weight exists, so a mistake costs seconds, not a queue slot.
"""

import dataclasses
import os
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.config import arguments, checks, data_dialects, model_dialects
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.model import DenoiserConfig, TrainModelConfig
from mindspeed_mm.config.reader import build, find, read_json
from mindspeed_mm.config.run import (
    CheckpointConfig,
    EvaluationConfig,
    LaunchConfig,
    OptimizerSettings,
    PrecisionConfig,
    ReportConfig,
    RunConfig,
)
from mindspeed_mm.config.sample import SampleConfig, SampleModelConfig, SamplingOptions, ServeConfig
from mindspeed_mm.config.tool import ToolConfig
from mindspeed_mm.errors import ConfigError

_log = logs.get(__name__)


def run_config(argv: list[str], world_size: int | None = None) -> RunConfig:
    """A training run from the flags of `pretrain_opensoraplan.py`. world_size: default torchrun's $WORLD_SIZE."""
    flags, without_effect = arguments.parse_train(argv)
    checks.positive("--train-iters", flags.train_iters)
    notes: list[str] = []
    model_node = model_dialects.model_node(read_json(flags.mm_model))
    data_node = data_dialects.data_node(read_json(flags.mm_data))
    model, data = build(TrainModelConfig, model_node, notes), build(DataConfig, data_node, notes)
    if flags.clip_grad_ema_decay is None and model.patch.adaptive_clip_grad_norm is not None:
        flags.clip_grad_ema_decay = model.patch.adaptive_clip_grad_norm.clip_grad_ema_decay
    launch = checks.launch_config(flags, model.predictor, find(model_node, "predictor.num_heads"))
    data_size = checks.data_ranks(launch, world_size)
    global_batch = flags.global_batch_size or flags.micro_batch_size * data_size
    if flags.num_workers is not None:
        loader = dataclasses.replace(data.dataloader_param, num_workers=flags.num_workers)
        data = dataclasses.replace(data, dataloader_param=loader)
    checks.check_batches(flags.micro_batch_size, global_batch, data_size, data, data_node)
    checks.check_networks(model.ae, model.predictor, lambda path: find(model_node, path))
    checks.check_clips(data, data_node, model, launch)
    checks.check_train_files(model, model_node, data, data_node)
    recompute_blocks, recompute_feed_forwards = _recompute(flags)
    config = RunConfig(
        launch=launch,
        precision=_precision(flags, model),
        optimizer=_optimizer(flags),
        checkpoint=_checkpoint(flags),
        model=model,
        data=data,
        micro_batch_size=flags.micro_batch_size,
        global_batch_size=global_batch,
        train_iters=flags.train_iters,
        seed=flags.seed,
        evaluation=_evaluation(flags, model.predictor, launch),
        report=_reports(flags),
        tools=build(ToolConfig, read_json(flags.mm_tool), notes) if flags.mm_tool else ToolConfig(),
        probe=flags.probe,
        max_bad_fraction=checks.fraction("--max-bad-fraction", flags.max_bad_fraction),
        data_ledger=flags.data_ledger or (os.path.join(flags.save, "data") if flags.save else None),
        recompute_blocks=recompute_blocks,
        recompute_feed_forwards=recompute_feed_forwards,
        compile=flags.compile,
        flags=tuple(sorted(vars(flags).items())),
    )
    _report(without_effect, notes)
    return config


def sample_config(argv: list[str], world_size: int | None = None) -> SampleConfig:
    """A sampling job from the flags of `inference.py`. world_size: default torchrun's $WORLD_SIZE."""
    flags, without_effect = arguments.parse_sample(argv)
    config, notes = _sample_config(flags, {"prompt": flags.prompt, "micro_batch_size": flags.micro_batch_size})
    data_size = checks.data_ranks(config.launch, world_size)
    if flags.cfg_parallel and data_size % 2:
        raise ConfigError(
            f"--cfg-parallel: pairs of data-parallel ranks share the two halves of guidance, but there is an odd number "
            f"of them, {data_size}; use twice the processes, or less tensor or context parallel"
        )
    launch = dataclasses.replace(config.launch, guidance_parallel=flags.cfg_parallel)
    _report(without_effect, notes)
    return dataclasses.replace(config, launch=launch, resume=flags.resume)


def serve_config(argv: list[str], world_size: int | None = None) -> ServeConfig:
    """A web page from the flags of `python -m mindspeed_mm.serve`."""
    flags, without_effect = arguments.parse_serve(argv)
    config, notes = _sample_config(flags, {})
    if checks.processes(world_size) != 1 or config.launch.tensor_size * config.launch.context_size != 1:
        raise ConfigError("the web page runs in one process on one device; sample on several with inference.py")
    if not 0 <= flags.port < 2**16:
        raise ConfigError(f"--port {flags.port}: must be from 0 to 65535")
    checks.positive("--max-queue", flags.max_queue)
    _report(without_effect, notes)
    return ServeConfig(sample=config, host=flags.host, port=flags.port, max_queue=flags.max_queue)


def _sample_config(flags, replaced: dict) -> tuple[SampleConfig, list[str]]:
    """What both programs that sample read alike. replaced: values of flags that stand for keys of the JSON."""
    notes: list[str] = []
    node = model_dialects.sample_node(read_json(flags.mm_model))
    model = build(SampleModelConfig, node, notes)
    if flags.bf16 and flags.fp16:
        raise ConfigError("--bf16 and --fp16: give one of them")
    weight_dtype = "bf16" if flags.bf16 else "fp16" if flags.fp16 else None
    replaced = {**replaced, "save_path": flags.save_path, "weight_dtype": weight_dtype}
    model = dataclasses.replace(model, **{key: value for key, value in replaced.items() if value is not None})
    checks.positive("--micro-batch-size", model.micro_batch_size)
    launch = checks.launch_config(flags, model.predictor, find(node, "predictor.num_heads"))
    checks.check_networks(model.ae, model.predictor, lambda path: find(node, path))
    checks.check_sample_size(model, launch, find(node, "pipeline_config.input_size"))
    checks.check_sample_files(model, node, flags)
    options = SamplingOptions(
        guidance_mode=flags.cfg_mode,
        offload=flags.offload,
        compile=flags.compile,
        step_cache=checks.positive("--step-cache", flags.step_cache),
    )
    config = SampleConfig(
        launch=launch, model=model, options=options, seed=flags.seed, load=flags.load, use_ema=flags.ema
    )
    return config, notes


# ---------------------------------------------------------------------------------------------------- flags to configs


def _precision(flags, model: TrainModelConfig) -> PrecisionConfig:
    if flags.bf16 and flags.fp16:
        raise ConfigError("--bf16 and --fp16: give one of them")
    whole = "bf16" if flags.bf16 else "fp16" if flags.fp16 else "fp32"
    if not flags.model_custom_precision:
        autoencoder = "fp32" if model.patch.ae_float32 else whole
        return PrecisionConfig(denoiser=whole, text_encoders=whole, autoencoder=autoencoder)
    if whole not in ("fp32", model.weight_dtype):
        raise ConfigError(
            f"--{whole}: with --model_custom_precision, weight_dtype {model.weight_dtype!r} of the model JSON counts"
        )
    return PrecisionConfig(denoiser=model.weight_dtype, text_encoders=model.weight_dtype, autoencoder=model.ae.dtype)


def _optimizer(flags) -> OptimizerSettings:
    if flags.clip_grad_ema_decay is not None and not 0 < flags.clip_grad_ema_decay < 1:
        raise ConfigError(
            f"--clip_grad_ema_decay {flags.clip_grad_ema_decay}: must be between 0 and 1, for example 0.99"
        )
    if flags.min_lr > flags.lr or flags.lr_warmup_init > flags.lr:
        raise ConfigError(
            f"--lr {flags.lr}: must be at least --min-lr {flags.min_lr} and --lr-warmup-init {flags.lr_warmup_init}"
        )
    decay_iters = flags.lr_decay_iters or flags.train_iters
    if flags.lr_warmup_iters >= decay_iters:
        raise ConfigError(f"--lr-warmup-iters {flags.lr_warmup_iters}: must be below --lr-decay-iters {decay_iters}")
    if flags.overlap_param_gather and not (flags.use_distributed_optimizer and flags.overlap_grad_reduce):
        raise ConfigError("--overlap-param-gather: needs --use-distributed-optimizer and --overlap-grad-reduce")
    return OptimizerSettings(
        lr=flags.lr,
        min_lr=flags.min_lr,
        lr_decay_style=flags.lr_decay_style,
        lr_decay_iters=decay_iters,
        lr_warmup_iters=flags.lr_warmup_iters,
        lr_warmup_init=flags.lr_warmup_init,
        weight_decay=flags.weight_decay,
        beta1=flags.adam_beta1,
        beta2=flags.adam_beta2,
        eps=flags.adam_eps,
        clip_grad=flags.clip_grad,
        clip_grad_ema_decay=flags.clip_grad_ema_decay,
        max_skipped_steps=checks.positive("--max-skipped-steps", flags.max_skipped_steps),
        use_distributed_optimizer=flags.use_distributed_optimizer,
        overlap_grad_reduce=flags.overlap_grad_reduce,
        overlap_param_gather=flags.overlap_param_gather,
        # Megatron does the same: bf16 gradients are always accumulated in fp32.
        grad_reduce_in_fp32=flags.accumulate_allreduce_grads_in_fp32 or not flags.fp16,
        use_ema=flags.use_ema or flags.optimizer_selection == "fused_ema_adamw",
        ema_decay=flags.ema_decay,
        loss_scale=flags.loss_scale,
        initial_loss_scale=flags.initial_loss_scale,
        min_loss_scale=flags.min_loss_scale,
        loss_scale_window=flags.loss_scale_window,
        hysteresis=flags.hysteresis,
    )


def _checkpoint(flags) -> CheckpointConfig:
    for flag, value in (("--keep-last-n", flags.keep_last_n), ("--keep-every-n", flags.keep_every_n)):
        if value is not None:
            checks.positive(flag, value)
    if flags.async_save and flags.ckpt_format != "torch":
        raise ConfigError(f"--async-save: only with --ckpt-format torch, not {flags.ckpt_format}")
    return CheckpointConfig(
        save=flags.save,
        load=flags.load,
        format=flags.ckpt_format,
        in_background=flags.async_save,
        keep_last=flags.keep_last_n,
        keep_every=flags.keep_every_n,
        save_interval=checks.positive("--save-interval", flags.save_interval),
        save_optimizer=not flags.no_save_optim,
        save_rng=not flags.no_save_rng,
        load_optimizer=not flags.no_load_optim,
        load_rng=not flags.no_load_rng,
    )


def _evaluation(flags, predictor: DenoiserConfig, launch: LaunchConfig) -> EvaluationConfig:
    for flag, file in (("--eval-data", flags.eval_data), ("--mm-sample", flags.mm_sample)):
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"{flag} {file}: no such file")
    return EvaluationConfig(
        interval=checks.positive("--eval-interval", flags.eval_interval),
        iterations=checks.positive("--eval-iters", flags.eval_iters),
        data_path=flags.eval_data,
        sample_interval=checks.positive("--sample-interval", flags.sample_interval),
        sample_model=_sample_while_training(flags, predictor, launch) if flags.mm_sample else None,
    )


def _sample_while_training(flags, predictor: DenoiserConfig, launch: LaunchConfig) -> SampleModelConfig:
    """The inference JSON of --mm-sample, whose denoiser has to be the one that is trained."""
    if flags.save is None:
        raise ConfigError("--mm-sample: videos are written below --save, which is missing")
    node = model_dialects.sample_node(read_json(flags.mm_sample))
    model = build(SampleModelConfig, node)
    for field in dataclasses.fields(DenoiserConfig):
        mine, trained = getattr(model.predictor, field.name), getattr(predictor, field.name)
        if mine != trained and field.name != "from_pretrained":
            raise find(node, "predictor").error(f"{field.name} is {mine}, but {trained} in the model that is trained")
    checks.check_sample_size(model, launch, find(node, "pipeline_config.input_size"))
    return model


def _reports(flags) -> ReportConfig:
    if flags.hang_timeout_minutes <= 0:
        raise ConfigError(f"--hang-timeout-minutes {flags.hang_timeout_minutes}: must be positive")
    return ReportConfig(
        log_interval=checks.positive("--log-interval", flags.log_interval),
        tensorboard_dir=flags.tensorboard_dir,
        tensorboard_interval=checks.positive("--tensorboard-log-interval", flags.tensorboard_log_interval),
        wandb_project=flags.wandb_project,
        wandb_name=flags.wandb_exp_name,
        wandb_dir=flags.wandb_save_dir,
        peak_tflops=flags.peak_tflops,
        hang_minutes=flags.hang_timeout_minutes,
    )


def _recompute(flags) -> tuple[int, int]:
    """Numbers of blocks to recompute whole and of blocks whose feed-forward is recomputed."""
    if flags.recompute_granularity == "selective":
        raise ConfigError("--recompute-granularity selective: use --selective_recom --recom_ffn_layers N")
    if flags.recompute_method == "uniform":
        raise ConfigError("--recompute-method uniform: only block is supported")
    blocks = flags.recompute_num_layers
    if blocks and flags.recompute_granularity != "full":
        raise ConfigError("--recompute-num-layers: needs --recompute-granularity full --recompute-method block")
    if blocks and flags.selective_recom:
        raise ConfigError(
            f"--selective_recom excludes --recompute-num-layers {blocks}: recompute feed-forwards or whole blocks, not both"
        )
    return blocks, flags.recom_ffn_layers if flags.selective_recom else 0


def _report(without_effect: list[str], notes: list[str]) -> None:
    if without_effect:
        _log.info(f"flags without effect here: {' '.join(without_effect)}")
    for note in notes:
        _log.info(note)
