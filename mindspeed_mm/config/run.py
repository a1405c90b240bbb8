"""Config of a training run: what the launch flags say, typed. `resolve.py` fills it and checks it against the JSONs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.config.tool import ToolConfig

if TYPE_CHECKING:  # sample.py imports this module
    from mindspeed_mm.config.sample import SampleModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """Where the process runs and how the ranks share the work."""

    device: str = "auto"
    mindspeed: str = "auto"
    tensor_size: int = 1
    context_size: int = 1
    sequence_parallel: bool = False
    guidance_parallel: bool = False  # sampling: the two halves of guidance on two ranks
    timeout_minutes: float = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionConfig:
    """Weight and compute precision of each component: "fp32", "bf16" or "fp16"."""

    denoiser: str = "fp32"
    text_encoders: str = "fp32"
    autoencoder: str = "fp32"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """AdamW (1711.05101) on fp32 main weights, its learning rate, clipping and EMA."""

    lr: float = 1e-5
    min_lr: float = 0.0
    lr_decay_style: str = "constant"
    lr_decay_iters: int = 1
    lr_warmup_iters: int = 0
    lr_warmup_init: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_grad: float = 1.0  # largest gradient norm; 0 for no limit
    clip_grad_ema_decay: float | None = None  # adaptive clipping instead, if given
    max_skipped_steps: int = 5  # that many skipped steps in a row end the run
    use_distributed_optimizer: bool = False
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    grad_reduce_in_fp32: bool = True
    use_ema: bool = False
    ema_decay: float = 0.9999
    loss_scale: float | None = None  # fp16: constant scale; None: dynamic
    initial_loss_scale: float = 2.0**32
    min_loss_scale: float = 1.0
    loss_scale_window: int = 1000
    hysteresis: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """What is saved and loaded, where and when."""

    save: str | None = None
    load: str | None = None
    save_interval: int = 1000
    format: str = "torch"  # "torch": Megatron's layout; "torch_dist": megatron-core's dist_checkpointing
    in_background: bool = False
    keep_last: int | None = None  # checkpoints to keep; None: all
    keep_every: int | None = None  # iterations that are multiples of this are kept for good
    save_optimizer: bool = True
    save_rng: bool = True
    load_optimizer: bool = True
    load_rng: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Loss on a held-out list, and videos, while training; either is off without its list."""

    interval: int = 1000
    iterations: int = 10  # micro-batches of each data rank
    data_path: str | None = None  # a data.txt
    sample_interval: int = 1000
    sample_model: SampleModelConfig | None = None  # the inference JSON of --mm-sample


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Where the numbers of a run go, beside the log and metrics.jsonl in the checkpoint directory."""

    log_interval: int = 100
    tensorboard_dir: str | None = None
    tensorboard_interval: int = 1
    wandb_project: str | None = None
    wandb_name: str | None = None
    wandb_dir: str | None = None
    peak_tflops: float | None = None  # of one device, for MFU; None: by the device's name
    hang_minutes: float = 15.0  # without progress, before every rank prints its stack and the process ends


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a training run."""

    launch: LaunchConfig
    precision: PrecisionConfig
    optimizer: OptimizerSettings
    checkpoint: CheckpointConfig
    model: TrainModelConfig
    data: DataConfig
    micro_batch_size: int = 1
    global_batch_size: int = 1
    train_iters: int = 1
    seed: int = 1234
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    tools: ToolConfig = ToolConfig()
    probe: bool = False  # open the files that the list says too little about
    max_bad_fraction: float = 0.5  # of the files tried; more bad ones end the run
    data_ledger: str | None = None  # folder for what was dropped and what was bad; None: the log only
    recompute_blocks: int = 0
    recompute_feed_forwards: int = 0
    compile: bool = False  # torch.compile the denoiser's blocks
    flags: tuple[tuple[str, object], ...] = ()  # argv as parsed, kept in the checkpoint as Megatron's `args`
