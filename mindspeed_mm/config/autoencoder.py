"""Config of training and of evaluating the autoencoder: the flags of tools/train_wfvae.py and tools/eval_vae.py.

Both read the `ae` block of a model JSON and the data JSON that a training run has; nothing else of either is needed.
"""

import argparse
import dataclasses
from pathlib import Path

from mindspeed_mm.config import checks, data_dialects, model_dialects
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.model import AutoencoderConfig
from mindspeed_mm.config.reader import build, find, read_json
from mindspeed_mm.config.run import CheckpointConfig, LaunchConfig, OptimizerSettings
from mindspeed_mm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderLossConfig:
    """Weights of the loss of WF-VAE (2411.17459, section 3.4), its perceptual and adversarial terms left out.

    All terms are sums over a clip, divided by its number of pixel values, so that the weights mean what they do there.
    """

    distance: str = "l1"  # of videos and of subbands: "l1", as in the paper, or "l2", which sees small objects sooner
    kl_weight: float = 1e-6
    wavelet_weight: float = 0.1


_PAPER = AutoencoderLossConfig()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderRunConfig:
    """Everything that decides a training run of the autoencoder."""

    launch: LaunchConfig
    autoencoder: AutoencoderConfig
    data: DataConfig
    loss: AutoencoderLossConfig
    optimizer: OptimizerSettings
    checkpoint: CheckpointConfig
    dtype: str = "fp32"
    micro_batch_size: int = 1
    global_batch_size: int = 1
    train_iters: int = 1
    log_interval: int = 100
    seed: int = 1234
    export: str | None = None  # file for the averaged weights
    export_dtype: str = "fp32"
    flags: tuple[tuple[str, object], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderEvaluationConfig:
    """Everything that decides an evaluation of the autoencoder."""

    launch: LaunchConfig
    autoencoder: AutoencoderConfig
    data: DataConfig
    clips: int = 64
    batch_size: int = 4
    seed: int = 1234
    data_path: str | None = None  # another data.txt than the data JSON's
    video: str | None = None  # file for the side-by-side mp4
    video_clips: int = 8
    statistics: tuple[str, ...] = ()  # model JSONs that get shift and scale

    @property
    def fps(self) -> float:
        return self.data.dataset_param.preprocess_parameters.train_fps


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are ConfigErrors."""

    def error(self, message):
        raise ConfigError(message)


def training_config(argv: list[str], world_size: int | None = None) -> AutoencoderRunConfig:
    """A run from the flags of tools/train_wfvae.py. world_size: default torchrun's $WORLD_SIZE."""
    flags = _training_parser().parse_args(argv)
    autoencoder, data = _read(flags)
    world = checks.processes(world_size)
    global_batch = flags.global_batch_size or flags.micro_batch_size * world
    if flags.micro_batch_size < 1 or global_batch % (flags.micro_batch_size * world):
        raise ConfigError(
            f"--global-batch-size {global_batch} is not a multiple of --micro-batch-size {flags.micro_batch_size} "
            f"x {world} processes"
        )
    if flags.min_lr > flags.lr or flags.lr_warmup_iters >= flags.train_iters:
        raise ConfigError(
            f"--min-lr {flags.min_lr} must not exceed --lr {flags.lr}, nor --lr-warmup-iters {flags.lr_warmup_iters} "
            f"reach --train-iters {flags.train_iters}"
        )
    return AutoencoderRunConfig(
        launch=LaunchConfig(device=flags.device),
        autoencoder=autoencoder,
        data=data,
        loss=AutoencoderLossConfig(
            distance=flags.distance, kl_weight=flags.kl_weight, wavelet_weight=flags.wavelet_weight
        ),
        optimizer=_optimizer(flags),
        checkpoint=CheckpointConfig(save=flags.save, load=flags.load, save_interval=flags.save_interval, keep_last=2),
        dtype="bf16" if flags.bf16 else "fp32",
        micro_batch_size=flags.micro_batch_size,
        global_batch_size=global_batch,
        train_iters=flags.train_iters,
        log_interval=flags.log_interval,
        seed=flags.seed,
        export=flags.export,
        export_dtype=flags.export_dtype,
        flags=tuple(sorted(vars(flags).items())),
    )


def evaluation_config(argv: list[str]) -> AutoencoderEvaluationConfig:
    """An evaluation from the flags of tools/eval_vae.py."""
    flags = _evaluation_parser().parse_args(argv)
    autoencoder, data = _read(flags)
    if autoencoder.from_pretrained is None:
        raise ConfigError(f"{flags.mm_model}: ae.from_pretrained is missing (or give --weights)")
    return AutoencoderEvaluationConfig(
        launch=LaunchConfig(device=flags.device),
        autoencoder=autoencoder,
        data=data,
        clips=flags.clips,
        batch_size=flags.batch_size,
        seed=flags.seed,
        data_path=flags.data_path,
        video=flags.video,
        video_clips=flags.video_clips,
        statistics=tuple(flags.write_statistics),
    )


def _read(flags) -> tuple[AutoencoderConfig, DataConfig]:
    """The `ae` block of --mm-model with --weights, and --mm-data; they are checked against each other."""
    model_node = model_dialects.model_node(read_json(flags.mm_model))
    data_node = data_dialects.data_node(read_json(flags.mm_data))
    autoencoder = build(AutoencoderConfig, find(model_node, "ae"))
    if flags.weights is not None:
        autoencoder = dataclasses.replace(autoencoder, from_pretrained=flags.weights)
    if autoencoder.from_pretrained is not None and not Path(autoencoder.from_pretrained).is_file():
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


def _optimizer(flags) -> OptimizerSettings:
    if not 0 <= flags.ema_decay < 1:
        raise ConfigError(f"--ema-decay {flags.ema_decay}: must be in [0, 1); 0 keeps no average")
    return OptimizerSettings(
        lr=flags.lr,
        min_lr=flags.min_lr,
        lr_decay_style=flags.lr_decay_style,
        lr_decay_iters=flags.train_iters,
        lr_warmup_iters=flags.lr_warmup_iters,
        weight_decay=flags.weight_decay,
        clip_grad=flags.clip_grad,
        use_distributed_optimizer=True,
        use_ema=flags.ema_decay > 0,
        ema_decay=flags.ema_decay,
    )


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mm-model", required=True, metavar="JSON", help="model JSON; its `ae` block counts")
    parser.add_argument("--mm-data", required=True, metavar="JSON", help="data.json: lists, filters, transforms")
    parser.add_argument("--weights", metavar="FILE", help="weights of the autoencoder, instead of ae.from_pretrained")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "npu"))
    parser.add_argument("--seed", type=int, default=1234, metavar="N", help="of all random numbers (default 1234)")


def _training_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="train_wfvae.py",
        description="Train or finetune a WFVAE on the clips of a data list: L1, KL and wavelet losses of WF-VAE "
        "(2411.17459). Several processes (torchrun) share the batch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _common(parser)
    add = parser.add_argument
    add("--train-iters", type=int, required=True, metavar="N", help="steps")
    add("--micro-batch-size", type=int, default=1, metavar="N", help="clips of a process at a time")
    add("--global-batch-size", type=int, metavar="N", help="clips of a step; None: one micro-batch of each process")
    add("--lr", type=float, default=1e-5, metavar="X", help="learning rate of AdamW")
    add("--min-lr", type=float, default=0.0, metavar="X")
    add("--lr-warmup-iters", type=int, default=0, metavar="N")
    add("--lr-decay-style", default="constant", choices=("constant", "linear", "cosine"))
    add("--weight-decay", type=float, default=1e-4, metavar="X")
    add("--clip-grad", type=float, default=1.0, metavar="X", help="largest gradient norm; 0: no limit")
    add("--ema-decay", type=float, default=0.999, metavar="X", help="of the averaged weights; 0: none are kept")
    add("--distance", default=_PAPER.distance, choices=("l1", "l2"), help="of videos and of subbands in the loss")
    add("--kl-weight", type=float, default=_PAPER.kl_weight, metavar="X")
    add("--wavelet-weight", type=float, default=_PAPER.wavelet_weight, metavar="X")
    add("--bf16", action="store_true", help="bf16 weights, fp32 main weights")
    add("--save", metavar="DIR", help="checkpoints that a run can continue from")
    add("--load", metavar="DIR", help="continue from here if it holds a checkpoint")
    add("--save-interval", type=int, default=1000, metavar="N", help="steps")
    add("--log-interval", type=int, default=100, metavar="N", help="steps between lines of the log")
    add("--export", metavar="FILE", help=".pt file for the averaged weights at the end, as ae.from_pretrained reads it")
    add("--export-dtype", default="fp32", choices=("fp32", "bf16", "fp16"), help="precision of that file")
    return parser


def _evaluation_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="eval_vae.py",
        description="PSNR and SSIM of a WFVAE on the clips of a data list, a side-by-side mp4, and the latents' mean and "
        "deviation, which can be written into model JSONs as shift and scale.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _common(parser)
    add = parser.add_argument
    add("--clips", type=int, default=64, metavar="N", help="clips of the list, in its order")
    add("--batch-size", type=int, default=4, metavar="N", help="clips at a time")
    add("--data-path", metavar="DATA.TXT", help="another list than the data JSON's")
    add("--video", metavar="MP4", help="write original, reconstruction and 4x difference side by side")
    add("--video-clips", type=int, default=8, metavar="N", help="clips in it, one below the other")
    add(
        "--write-statistics",
        nargs="+",
        default=[],
        metavar="JSON",
        help="write shift (mean) and scale (1 / deviation) of each latent channel into the `ae` block of these files",
    )
    return parser
