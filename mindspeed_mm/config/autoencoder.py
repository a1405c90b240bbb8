"""Config of training and evaluating the autoencoder: the flags of `mindspeed-mm train-vae` and `eval-vae`.

Both read only the `ae` block of a model JSON, and the data JSON of a training run.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from mindspeed_mm import families, logs
from mindspeed_mm.config import checks, data_dialects, hub, model_dialects
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.config.run import CheckpointConfig, EvaluationConfig, TrainingFlags
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.base import DTYPES
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.schema import Notes, Program, build, find, flag, group, read_json

_log = logs.get(__name__)
# Settings of the optimizer that an autoencoder's run fixes: AdamW with an EMA (unless --ema-decay is 0), sharded over
# the data ranks, gradients summed in fp32, no fp16.
_FIXED_IN_THE_OPTIMIZER = (
    "selection",
    "use_ema",
    "use_distributed_optimizer",
    "grad_reduce_in_fp32",
    "loss_scale",
    "initial_loss_scale",
    "min_loss_scale",
    "loss_scale_window",
    "hysteresis",
)
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


def _model_flag() -> Any:
    return flag("", "--mm-model", required=True, metavar="JSON", help="model JSON; only its `ae` block is read")


def _weights_flag() -> Any:
    return flag(None, "--weights", metavar="FILE", help="weights of the autoencoder, instead of ae.from_pretrained")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderTrainingFlags(TrainingFlags):
    """The flags of `mindspeed-mm train-vae`: those of every training program, and its own."""

    mm_model: str = _model_flag()
    weights: str | None = _weights_flag()
    optimizer: OptimizerSettings = group(
        OptimizerSettings,
        "optimizer",
        without=_FIXED_IN_THE_OPTIMIZER,
        defaults={"weight_decay": 1e-4, "ema_decay": 0.999, "use_distributed_optimizer": True},
    )
    loss: AutoencoderLossConfig = group(AutoencoderLossConfig, "loss")
    checkpoint: CheckpointConfig = group(
        CheckpointConfig, "checkpoints", without=("finetune",), defaults={"keep_last": 2}
    )
    evaluation: EvaluationConfig = group(
        EvaluationConfig, "evaluation while training", only=("interval", "iterations", "data_path")
    )
    export: str | None = flag(
        None,
        "--export",
        metavar="FILE",
        help="write the final averaged weights to this .pt file, which ae.from_pretrained reads",
    )
    export_dtype: str = flag("fp32", "--export-dtype", choices=DTYPES, help="precision of the exported weights")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderRunConfig(AutoencoderTrainingFlags):
    """All settings of a training run of the autoencoder."""

    autoencoder: WFVAEConfig
    data: DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationFlags:
    """The flags of `mindspeed-mm eval-vae`."""

    mm_model: str = _model_flag()
    mm_data: str = flag("", "--mm-data", required=True, metavar="JSON", help="data.json: lists, filters, transforms")
    weights: str | None = _weights_flag()
    launch: LaunchConfig = group(LaunchConfig, "device", only=("device",))
    seed: int = flag(1234, "--seed", at_least=0, at_most=2**63 - 1, help="seed of all random numbers")
    clips: int = flag(64, "--clips", at_least=1, help="number of clips to evaluate, in the order of the list")
    batch_size: int = flag(
        4, "--micro-batch-size", published=("--batch-size",), at_least=1, help="clips that are handled at a time"
    )
    data_path: str | None = flag(
        None,
        "--data-path",
        metavar="PATH",
        help="clips to use instead of the data JSON's: data.txt, an annotation file, a folder or a .tar",
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

    autoencoder: WFVAEConfig
    data: DataConfig

    @property
    def fps(self) -> float:
        return self.data.dataset_param.preprocess_parameters.train_fps


TRAIN_VAE = Program(
    flags=AutoencoderTrainingFlags,
    description="Train or finetune a WFVAE on the clips of a data list: L1, KL and wavelet losses of WF-VAE (2411.17459).",
    remarks="Several processes share the batch.",
    examples=(
        "mindspeed-mm train-vae --mm-model model.json --mm-data data.json --nproc 8 \\\n"
        "      --lr 1e-4 --train-iters 20000 --save vae --load vae --export vae.pt",
    ),
)
EVAL_VAE = Program(
    flags=EvaluationFlags,
    description="PSNR and SSIM of a WFVAE on the clips of a data list, a side-by-side mp4, and the latents' mean and "
    "deviation as shift and scale.",
    examples=(
        "mindspeed-mm eval-vae --mm-model model.json --mm-data data.json \\\n"
        "      --weights vae.pt --video side_by_side.mp4",
    ),
)


def training_config(
    argv: Sequence[str], world_size: int | None = None, prog: str | None = None
) -> AutoencoderRunConfig:
    """A run from the flags of `mindspeed-mm train-vae`. world_size: default torchrun's $WORLD_SIZE."""
    given = TRAIN_VAE.parse(argv, prog)
    flags, notes = given.values, Notes()
    autoencoder, data = _read(flags.mm_model, flags.mm_data, flags.weights)
    values = flags.completed(AutoencoderTrainingFlags, checks.processes(world_size), given.flags, notes)
    optimizer: OptimizerSettings = values["optimizer"]
    values["optimizer"] = dataclasses.replace(optimizer, use_ema=optimizer.ema_decay > 0)
    for line in notes.lines():
        _log.info(line)
    return AutoencoderRunConfig(**values, autoencoder=autoencoder, data=flags.with_workers(data))


def evaluation_config(argv: Sequence[str], prog: str | None = None) -> AutoencoderEvaluationConfig:
    """An evaluation from the flags of `mindspeed-mm eval-vae`."""
    flags = EVAL_VAE.parse(argv, prog).values
    autoencoder, data = _read(flags.mm_model, flags.mm_data, flags.weights)
    if autoencoder.from_pretrained is None:
        raise ConfigError(f"{flags.mm_model}: ae.from_pretrained is missing (or give --weights)")
    ours = {field.name: getattr(flags, field.name) for field in dataclasses.fields(EvaluationFlags)}
    return AutoencoderEvaluationConfig(**ours, autoencoder=autoencoder, data=data)


def _read(mm_model: str, mm_data: str, weights: str | None) -> tuple[WFVAEConfig, DataConfig]:
    """Reads the `ae` block of --mm-model with --weights, and --mm-data, and checks them against each other."""
    model_node = hub.with_local_weights(model_dialects.model_node(read_json(mm_model)))
    data_node = data_dialects.data_node(read_json(mm_data))
    block = find(model_node, "ae")
    autoencoder = families.read_autoencoder(block)
    if not isinstance(autoencoder, WFVAEConfig):  # the loss rebuilds its subbands
        raise block.error(f"model_id {autoencoder.model_id}: only a WFVAE is trained and measured here")
    if weights is not None:
        autoencoder = dataclasses.replace(autoencoder, from_pretrained=hub.local(weights))
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
