"""Config of training and evaluating the autoencoder: the flags of tools/train_wfvae.py and tools/eval_vae.py.

Both read only the `ae` block of a model JSON, and the data JSON of a training run.
"""

import dataclasses
import os

from mindspeed_mm import families
from mindspeed_mm.config import checks, data_dialects, model_dialects
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.config.run import CheckpointConfig, ReportConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.base import DTYPES, AutoencoderConfig
from mindspeed_mm.schema import build, find, flag, group, parse, read_json, switches

# Distances in a loss over all values of a clip, each a sum over one part; the keys are the choices of --distance.
DISTANCES = {"l1": lambda difference: difference.abs().sum(), "l2": lambda difference: difference.square().sum()}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderLossConfig:
    """Weights of the loss of WF-VAE (2411.17459, section 3.4), without its perceptual and adversarial terms.

    All terms are sums over a clip, divided by its number of pixel values, so that the weights have the paper's
    meaning.
    """

    distance: str = flag(
        "l1",
        "--distance",
        choices=DISTANCES,
        help="distance of videos and subbands in the loss: l1, as in the paper, or l2, which learns small objects sooner",
    )
    kl_weight: float = flag(1e-6, "--kl-weight", at_least=0, help="weight of the KL divergence in the loss")
    wavelet_weight: float = flag(0.1, "--wavelet-weight", at_least=0, help="weight of the wavelet loss")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderFlags:
    """Flags of both programs."""

    mm_model: str = flag(
        "", "--mm-model", required=True, metavar="JSON", help="model JSON; only its `ae` block is read"
    )
    mm_data: str = flag("", "--mm-data", required=True, metavar="JSON", help="data.json: lists, filters, transforms")
    weights: str | None = flag(
        None, "--weights", metavar="FILE", help="weights of the autoencoder, instead of ae.from_pretrained"
    )
    launch: LaunchConfig = group(LaunchConfig, "device", only=("device",))
    seed: int = flag(1234, "--seed", at_least=0, at_most=2**63 - 1, help="seed of all random numbers")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFlags(AutoencoderFlags):
    """The flags of tools/train_wfvae.py."""

    train_iters: int = flag(1, "--train-iters", required=True, at_least=1, unit="steps", help="length of the run")
    micro_batch_size: int = flag(1, "--micro-batch-size", at_least=1, help="clips that a process handles at a time")
    global_batch_size: int = flag(
        0, "--global-batch-size", at_least=1, help="clips per step; default: one micro-batch per process"
    )
    optimizer: OptimizerSettings = group(
        OptimizerSettings,
        "optimizer",
        only=("lr", "min_lr", "lr_warmup_iters", "lr_decay_style", "weight_decay", "clip_grad", "ema_decay"),
        defaults={"weight_decay": 1e-4, "ema_decay": 0.999, "use_distributed_optimizer": True},
    )
    loss: AutoencoderLossConfig = group(AutoencoderLossConfig, "loss")
    dtype: str = switches("fp32", {"--bf16": ("bf16", "bf16 weights, fp32 main weights")})
    checkpoint: CheckpointConfig = group(
        CheckpointConfig, "checkpoints", only=("save", "load", "save_interval"), defaults={"keep_last": 2}
    )
    report: ReportConfig = group(ReportConfig, "reports", only=("log_interval",))
    export: str | None = flag(
        None,
        "--export",
        metavar="FILE",
        help="write the final averaged weights to this .pt file, which ae.from_pretrained reads",
    )
    export_dtype: str = flag("fp32", "--export-dtype", choices=DTYPES, help="precision of the exported weights")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderRunConfig(TrainingFlags):
    """All settings of a training run of the autoencoder."""

    autoencoder: AutoencoderConfig
    data: DataConfig
    flags: tuple[tuple[str, object], ...] = ()

    @property
    def log_interval(self) -> int:
        return self.report.log_interval


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationFlags(AutoencoderFlags):
    """The flags of tools/eval_vae.py."""

    clips: int = flag(64, "--clips", at_least=1, help="number of clips to evaluate, in the order of the list")
    batch_size: int = flag(4, "--batch-size", at_least=1, help="clips per batch")
    data_path: str | None = flag(
        None, "--data-path", metavar="DATA.TXT", help="list of clips to use instead of the data JSON's"
    )
    video: str | None = flag(
        None, "--video", metavar="MP4", help="write original, reconstruction and 4x difference side by side"
    )
    video_clips: int = flag(8, "--video-clips", at_least=1, help="clips in the --video file, one below the other")
    statistics: str | None = flag(
        None,
        "--write-statistics",
        metavar="JSON",
        help="write shift (mean) and scale (1 / deviation) of each latent channel into this file, which ae.statistics of "
        "a model JSON names",
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderEvaluationConfig(EvaluationFlags):
    """All settings of an evaluation of the autoencoder."""

    autoencoder: AutoencoderConfig
    data: DataConfig

    @property
    def fps(self) -> float:
        return self.data.dataset_param.preprocess_parameters.train_fps


def training_config(argv: list[str], world_size: int | None = None) -> AutoencoderRunConfig:
    """A run from the flags of tools/train_wfvae.py. world_size: default torchrun's $WORLD_SIZE."""
    given = parse(
        TrainingFlags,
        argv,
        prog="train_wfvae.py",
        description="Train or finetune a WFVAE on the clips of a data list: L1, KL and wavelet losses of WF-VAE "
        "(2411.17459). Several processes (torchrun) share the batch.",
    )
    flags = given.values
    autoencoder, data = _read(flags)
    world = checks.processes(world_size)
    global_batch = flags.global_batch_size or flags.micro_batch_size * world
    checks.check_total(flags.micro_batch_size, global_batch, world)
    optimizer = dataclasses.replace(
        flags.optimizer,
        lr_decay_iters=checks.decay_iters(flags.optimizer, flags.train_iters),
        use_ema=flags.optimizer.ema_decay > 0,
    )
    ours = {field.name: getattr(flags, field.name) for field in dataclasses.fields(TrainingFlags)}
    ours.update(global_batch_size=global_batch, optimizer=optimizer)
    return AutoencoderRunConfig(**ours, autoencoder=autoencoder, data=data, flags=tuple(sorted(given.flags.items())))


def evaluation_config(argv: list[str]) -> AutoencoderEvaluationConfig:
    """An evaluation from the flags of tools/eval_vae.py."""
    flags = parse(
        EvaluationFlags,
        argv,
        prog="eval_vae.py",
        description="PSNR and SSIM of a WFVAE on the clips of a data list, a side-by-side mp4, and the latents' mean and "
        "deviation as shift and scale.",
    ).values
    autoencoder, data = _read(flags)
    if autoencoder.from_pretrained is None:
        raise ConfigError(f"{flags.mm_model}: ae.from_pretrained is missing (or give --weights)")
    ours = {field.name: getattr(flags, field.name) for field in dataclasses.fields(EvaluationFlags)}
    return AutoencoderEvaluationConfig(**ours, autoencoder=autoencoder, data=data)


def _read(flags: AutoencoderFlags) -> tuple[AutoencoderConfig, DataConfig]:
    """Reads the `ae` block of --mm-model with --weights, and --mm-data, and checks them against each other."""
    model_node = model_dialects.model_node(read_json(flags.mm_model))
    data_node = data_dialects.data_node(read_json(flags.mm_data))
    autoencoder = families.read_autoencoder(find(model_node, "ae"))
    if flags.weights is not None:
        autoencoder = dataclasses.replace(autoencoder, from_pretrained=flags.weights)
    if autoencoder.from_pretrained is not None and not os.path.isfile(autoencoder.from_pretrained):
        raise ConfigError(f"{autoencoder.from_pretrained}: no such file (ae.from_pretrained, or --weights)")
    data = build(DataConfig, data_node)
    clips = data.dataset_param.preprocess_parameters
    place = find(data_node, "dataset_param.preprocess_parameters")
    if clips.force_resolution:
        try:
            LatentGrid.of_video(clips.num_frames, clips.max_height, clips.max_width, autoencoder.strides)
        except ConfigError as error:
            raise place.error(str(error)) from None
    if clips.ae_stride_t != autoencoder.strides[0]:
        raise find(place, "ae_stride_t").error(
            f"{clips.ae_stride_t}, but the autoencoder compresses time by {autoencoder.strides[0]}"
        )
    return autoencoder, data
