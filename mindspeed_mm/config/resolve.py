"""Turns argv and JSON files into RunConfig, SampleConfig or ServeConfig, and checks settings against each other.

All checks run before a process group or a weight exists, so a mistake costs seconds, not a queue slot. The rules of a
single flag are at its field.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from mindspeed_mm import logs
from mindspeed_mm.config import arguments, checks, data_dialects, distillation, hub, model_dialects, trained
from mindspeed_mm.config.adapter_choice import AdapterChoice
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.launch import LaunchConfig, of_the_run
from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.config.optimizer import OPTIMIZERS, OptimizerSettings
from mindspeed_mm.config.run import EvaluationConfig, PrecisionConfig, RunConfig, RunFlags
from mindspeed_mm.config.sample import SampleConfig, SampleFlags, SampleModelConfig, ServeConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.families.base import DenoiserConfig
from mindspeed_mm.schema import Given, Node, Notes, build, check, find, flags_of, read_json

_log = logs.get(__name__)
_Sample = TypeVar("_Sample", bound=SampleFlags)


def run_config(argv: Sequence[str], world_size: int | None = None, prog: str | None = None) -> RunConfig:
    """A training run from the flags of `mindspeed-mm train`. world_size: default torchrun's $WORLD_SIZE."""
    return _run_config(arguments.TRAIN.parse(argv, prog), world_size)


def extraction_config(argv: Sequence[str], prog: str | None = None) -> tuple[RunConfig, str | None]:
    """Config of the run for which `mindspeed-mm extract` makes features, and "video" or "text" if only one is
    wanted.

    The run's layout must be valid, but need not fit the current number of processes.
    """
    given = arguments.EXTRACT.parse(argv, prog)
    launch = given.values.launch
    return _run_config(given, launch.tensor_size * launch.context_size), given.values.only


def encoding_run(given: Given[RunFlags], world_size: int | None = None) -> RunConfig:
    """A training run that encodes its clips and captions itself, whatever its model JSON says of stored features."""
    return _run_config(given, world_size, encodes=True)


def _run_config(given: Given, world_size: int | None, encodes: bool = False) -> RunConfig:
    flags: RunFlags = given.values
    notes = Notes()
    model_node = hub.with_local_weights(model_dialects.model_node(read_json(flags.mm_model)))
    data_node = hub.with_local_weights(data_dialects.data_node(read_json(flags.mm_data)))
    model, data = build(TrainModelConfig, model_node, notes), build(DataConfig, data_node, notes)
    if encodes:
        model = dataclasses.replace(model, load_video_features=False, load_text_features=False)
    launch = checks.launch_config(flags.launch, model.predictor, find(model_node, "predictor.num_heads"))
    data_size = checks.data_ranks(launch, world_size)
    data = flags.with_workers(flags.listed.applied(data))
    values = flags.completed(RunFlags, data_size, given.flags, notes)
    checks.check_batches(flags.micro_batch_size, values["global_batch_size"], data_size, data, data_node)
    checks.check_networks(model.ae, model.predictor, lambda path: find(model_node, path))
    checks.check_image_conditions(model, data, model_node, data_node)
    checks.check_clips(data, data_node, model, launch)
    precision = _precision(flags, model)
    adapter = _adapter(flags, model, given.given)
    trained.check_trained(flags.trained, model.predictor, adapter)
    if adapter.kind is not None:
        weights = find(model_node, "predictor.from_pretrained")
        trained.check_adapter(adapter, model, weights, launch, precision.denoiser, flags.compile)
    autoencoder_weights = checks.check_train_files(model, model_node, data, data_node)
    stored = checks.stored_features(model, data, data_node)
    optimizer = _optimizer(values["optimizer"], flags, model, given.flags["accumulate_allreduce_grads_in_fp32"])
    values.update(
        launch=launch,
        adapter=adapter,
        distill=distillation.settled(flags.distill, given.given, model, model_node),
        optimizer=optimizer,
        evaluation=_evaluation(flags, model.predictor, launch),
        flags=of_the_run({**given.flags, "clip_grad_ema_decay": optimizer.clip_grad_ema_decay}),
    )
    config = RunConfig(
        **values,
        precision=precision,
        model=model,
        data=data,
        autoencoder_weights=autoencoder_weights,
        stored=stored,
    )
    _report(given.without_effect, notes)
    return config


def sample_config(argv: Sequence[str], world_size: int | None = None, prog: str | None = None) -> SampleConfig:
    """A sampling job from the flags of `mindspeed-mm sample`. world_size: default torchrun's $WORLD_SIZE."""
    given = arguments.SAMPLE.parse(argv, prog)
    flags = given.values
    config = _sample_config(
        given,
        prompt=flags.prompt,
        micro_batch_size=flags.micro_batch_size,
        max_prompts=flags.max_prompts,
        images=flags.images if flags.images.files else None,
        keep_known_pixels=flags.keep_known_pixels or None,
    )
    data_size = checks.data_ranks(config.launch, world_size)
    if config.launch.guidance_parallel and data_size % 2:
        raise ConfigError(
            f"--cfg-parallel: pairs of data-parallel ranks share the two halves of guidance, but there is an odd number "
            f"of them, {data_size}; use twice the processes, or less tensor or context parallel"
        )
    return dataclasses.replace(config, resume=flags.resume)


def serve_config(argv: Sequence[str], world_size: int | None = None, prog: str | None = None) -> ServeConfig:
    """The server from the flags of `mindspeed-mm serve`."""
    given = arguments.SERVE.parse(argv, prog)
    flags, config = given.values, _sample_config(given)
    launch = config.launch
    ranks = launch.tensor_size * launch.context_size * (2 if launch.guidance_parallel else 1)
    world = checks.processes(world_size)
    if world != ranks:
        raise ConfigError(
            f"the server makes one video at a time, on {ranks} processes with this layout (TP x CP, x 2 with --cfg-parallel), "
            f"not {world}: use --nproc {ranks}, or another layout"
        )
    return ServeConfig(sample=config, host=flags.host, port=flags.port, max_queue=flags.max_queue, api=flags.api)


def _sample_config(given: Given[_Sample], **replaced: object) -> SampleConfig:
    """Reads the part shared by both sampling programs. replaced: values of flags that override keys of the JSON."""
    flags, notes = given.values, Notes()
    node = hub.with_local_weights(model_dialects.sample_node(read_json(flags.mm_model)))
    model = build(SampleModelConfig, node, notes)
    replaced.update(save_path=flags.save_path, weight_dtype=flags.weight_dtype)
    model = dataclasses.replace(model, **{key: value for key, value in replaced.items() if value is not None})
    said = {"num_inference_steps": flags.num_inference_steps, "guidance_scale": flags.guidance_scale}
    fixed = {key: value for key, value in said.items() if value is not None}
    model = dataclasses.replace(model, diffusion=dataclasses.replace(model.diffusion, **fixed))
    check(model.diffusion)
    launch = checks.launch_config(flags.launch, model.predictor, find(node, "predictor.num_heads"))
    checks.check_networks(model.ae, model.predictor, lambda path: find(node, path))
    checks.check_sample_size(model, launch, find(node, "pipeline_config.input_size"), flags.options.max_pixels)
    checks.check_sample_files(model, node, flags.load)
    _report(given.without_effect, notes)
    return SampleConfig(
        launch=launch,
        model=model,
        options=flags.options,
        seed=flags.seed,
        load=None if flags.load is None else hub.local(flags.load),
        use_ema=flags.use_ema,
        adapters=tuple(map(AdapterChoice.read, flags.adapters)),
        fixed=tuple(fixed),
    )


# ---------------------------------------------------------------------------------------------------- flags to configs


def _precision(flags: RunFlags, model: TrainModelConfig) -> PrecisionConfig:
    whole = flags.dtype
    if not flags.custom_precision:
        autoencoder = "fp32" if model.patch.ae_float32 else whole
        return PrecisionConfig(denoiser=whole, text_encoders=whole, autoencoder=autoencoder)
    if whole not in ("fp32", model.weight_dtype):
        raise ConfigError(
            f"--{whole}: with --model_custom_precision, weight_dtype {model.weight_dtype!r} of the model JSON counts"
        )
    return PrecisionConfig(denoiser=model.weight_dtype, text_encoders=model.weight_dtype, autoencoder=model.ae.dtype)


def _adapter(flags: RunFlags, model: TrainModelConfig, given: frozenset[str]) -> AdapterConfig:
    """The adapter to train, by the model JSON and the flags, of which those that are given take precedence."""
    named = {flag.path[-1]: flag.name for flag in flags_of(AdapterConfig)}
    explicit = {name: getattr(flags.adapter, name) for name, flag in named.items() if flag in given}
    adapter = dataclasses.replace(model.adapter or flags.adapter, **explicit)
    if adapter.kind is None and explicit:
        raise ConfigError(f"{named[next(iter(explicit))]}: only with --adapter, which trains one")
    return adapter


def _optimizer(
    optimizer: OptimizerSettings, flags: RunFlags, model: TrainModelConfig, fp32_gradients: bool
) -> OptimizerSettings:
    patch = model.patch.adaptive_clip_grad_norm
    clip_decay = optimizer.clip_grad_ema_decay
    if clip_decay is None and patch is not None:
        clip_decay = patch.clip_grad_ema_decay
    return dataclasses.replace(
        optimizer,
        clip_grad_ema_decay=clip_decay,
        # As in Megatron: bf16 gradients are always accumulated in fp32.
        grad_reduce_in_fp32=fp32_gradients or flags.dtype != "fp16",
        use_ema=optimizer.use_ema or OPTIMIZERS[optimizer.selection],
    )


def _evaluation(flags: RunFlags, predictor: DenoiserConfig, launch: LaunchConfig) -> EvaluationConfig:
    """Evaluation config with the inference JSON of --mm-sample, whose denoiser must equal the trained one."""
    evaluation = flags.evaluation
    if evaluation.sample_file is None:
        return evaluation
    if flags.checkpoint.save is None:
        raise ConfigError("--mm-sample: videos are written below --save, which is missing")
    node: Node = hub.with_local_weights(model_dialects.sample_node(read_json(evaluation.sample_file)))
    model = build(SampleModelConfig, node)
    if type(model.predictor) is not type(predictor):
        raise find(node, "predictor.model_id").error(f"{model.predictor.model_id}, but {predictor.model_id} is trained")
    for field in dataclasses.fields(predictor):
        mine, trained = getattr(model.predictor, field.name), getattr(predictor, field.name)
        if mine != trained and field.name != "from_pretrained":
            raise find(node, "predictor").error(f"{field.name} is {mine}, but {trained} in the model that is trained")
    checks.check_sample_size(model, launch, find(node, "pipeline_config.input_size"))
    return dataclasses.replace(evaluation, sample_model=model)


def _report(without_effect: list[str], notes: Notes) -> None:
    if without_effect:
        _log.info(f"flags without effect here: {' '.join(without_effect)}")
    for line in notes.lines():
        _log.info(line)
