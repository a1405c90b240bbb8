"""Config of a training run: its flags, and the config that `resolve.py` makes of flags and JSONs."""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from mindspeed_mm.config import checks
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.distillation import DistillConfig
from mindspeed_mm.config.launch import LaunchConfig, RanksConfig, of_the_run
from mindspeed_mm.config.list_flags import ListFlags
from mindspeed_mm.config.model import StoredFeatures, TrainModelConfig
from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.config.tool import ToolConfig
from mindspeed_mm.config.trained import TrainedConfig
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.schema import Notes, build, flag, group, read_json, switches

_REPORTS, _DATA, _BATCHES, _PRECISION = "reports", "data", "batches", "precision"
_BF16 = ("bf16", "bf16 weights, fp32 main weights")
_RECOMPUTATION = "recomputation: whole blocks, or only the feed-forwards of blocks"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionConfig:
    """Weight and compute precision of each component: "fp32", "bf16" or "fp16"."""

    denoiser: str = "fp32"
    text_encoders: str = "fp32"
    autoencoder: str = "fp32"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """Settings of saving and loading checkpoints."""

    save: str | None = flag(None, "--save", metavar="DIR", help="write checkpoints to this directory")
    load: str | None = flag(
        None, "--load", metavar="DIR", help="continue from the checkpoint in this directory, if there is one"
    )
    save_interval: int = flag(1000, "--save-interval", at_least=1, unit="steps", help="interval between checkpoints")
    format: str = flag(
        "torch", "--ckpt-format", choices=("torch", "torch_dist"), help="Megatron's layout, or dist_checkpointing"
    )
    in_background: bool = flag(False, "--async-save", help="write in the background, while training goes on")
    keep_last: int | None = flag(None, "--keep-last-n", at_least=1, help="delete checkpoints but the newest N")
    keep_every: int | None = flag(
        None, "--keep-every-n", at_least=1, unit="steps", help="keep every checkpoint whose iteration this divides"
    )
    save_optimizer: bool = flag(True, "--no-save-optim", help="save no optimizer state")
    save_rng: bool = flag(True, "--no-save-rng", help="save no random number generator states")
    load_optimizer: bool = flag(True, "--no-load-optim", help="start with a fresh optimizer")
    load_rng: bool = flag(True, "--no-load-rng", help="start with fresh random number generators")
    finetune: bool = flag(False, "--finetune", help="load only the weights of --load, and start at iteration 0")

    def problems(self):
        if self.finetune and self.load is None:
            yield "finetune", "takes the weights of --load, which is missing"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Loss on a held-out list, and sampled videos, while training; each is off without its file."""

    interval: int = flag(1000, "--eval-interval", at_least=1, unit="steps", help="interval between evaluations")
    iterations: int = flag(10, "--eval-iters", at_least=1, help="micro-batches per evaluation on each data rank")
    data_path: str | None = flag(
        None,
        "--eval-data",
        metavar="PATH",
        help="held-out clips, as data_path of the data JSON: data.txt, an annotation file, a folder or a .tar; without it "
        "there is no evaluation",
    )
    patience: int | None = flag(
        None,
        "--patience",
        at_least=1,
        metavar="N",
        help="end after N evaluations in a row without a lower held-out loss (of averaged weights, if there are some)",
    )
    overfit_check: bool = flag(
        False,
        "--overfit-check",
        help="evaluate as many training clips beside the held-out ones, and warn where only the held-out loss rises",
    )
    sample_interval: int = flag(1000, "--sample-interval", at_least=1, unit="steps", help="interval between samples")
    sample_file: str | None = flag(
        None,
        "--mm-sample",
        metavar="JSON",
        help="inference JSON with the prompts to sample, from EMA weights; without it nothing is sampled",
    )
    sample_model: SampleModelConfig | None = None  # the content of sample_file

    def problems(self):
        if self.data_path is not None and not os.path.exists(self.data_path):
            yield "data_path", f"{self.data_path}: no such file or folder"
        for name, flag_name in (("patience", "--patience"), ("overfit_check", "--overfit-check")):
            if getattr(self, name) and self.data_path is None:
                yield name, f"{flag_name}: only with --eval-data, the held-out clips"
        if self.sample_file is not None and not os.path.isfile(self.sample_file):
            yield "sample_file", f"{self.sample_file}: no such file"


TRACKERS = {"tensorboard_dir": "tensorboard", "wandb_project": "wandb", "swanlab_project": "swanlab"}  # field: package


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Reports of a run, in addition to the log and metrics.jsonl in the checkpoint directory."""

    log_interval: int = flag(100, "--log-interval", at_least=1, unit="steps", help="interval between log lines")
    tensorboard_dir: str | None = flag(
        None, "--tensorboard-dir", metavar="DIR", help="write TensorBoard events (needs the package)"
    )
    tensorboard_interval: int = flag(
        1, "--tensorboard-log-interval", at_least=1, unit="steps", help="interval between TensorBoard events"
    )
    wandb_project: str | None = flag(
        None, "--wandb-project", metavar="NAME", help="report to Weights & Biases (needs the package and a login)"
    )
    wandb_name: str | None = flag(None, "--wandb-exp-name", metavar="NAME", help="name of the run at Weights & Biases")
    wandb_dir: str | None = flag(
        None, "--wandb-save-dir", metavar="DIR", help="directory for the local files of Weights & Biases"
    )
    swanlab_project: str | None = flag(
        None, "--swanlab-project", metavar="NAME", help="report to SwanLab (needs the package and a login)"
    )
    swanlab_name: str | None = flag(None, "--swanlab-exp-name", metavar="NAME", help="name of the run at SwanLab")
    swanlab_dir: str | None = flag(
        None, "--swanlab-save-dir", metavar="DIR", help="directory for the local files of SwanLab"
    )
    missing_trackers: str = flag(
        "error",
        "--missing-trackers",
        choices=("error", "skip"),
        help="end at once, or go on, if the package of a tracker that is asked for is not installed",
    )
    peak_tflops: float | None = flag(
        None,
        "--peak-tflops",
        above=0,
        unit="TFLOP/s",
        help="peak speed of one device, for MFU; default: looked up by its name",
    )
    hang_minutes: float = flag(
        15.0,
        "--hang-timeout-minutes",
        above=0,
        at_most=525_600,
        unit="minutes",
        help="time without progress after which every rank prints its stack and the run ends",
    )

    def trackers(self) -> dict[str, str]:
        """Trackers that are asked for: field -> package that it needs."""
        return {field: package for field, package in TRACKERS.items() if getattr(self, field) is not None}

    def problems(self):
        for field, package in self.trackers().items():
            if self.missing_trackers == "error" and importlib.util.find_spec(package) is None:
                yield (
                    field,
                    f"{getattr(self, field)}: the package {package} is not installed; pip install {package}, or go on without it with "
                    "--missing-trackers skip",
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExitConfig:
    """Settings for an early end of a process: it saves, its exit code is 0, and the next start continues."""

    interval: int | None = flag(
        None, "--exit-interval", at_least=1, unit="steps", help="end after an iteration that this divides"
    )
    minutes: float | None = flag(
        None, "--exit-duration-in-mins", above=0, at_most=525_600, unit="minutes", help="end after this running time"
    )
    signal_ahead_s: float = flag(
        0.0,
        "--signal-ahead",
        at_least=0,
        at_most=86_400,
        unit="seconds",
        help="time between SIGUSR1 and the job's end: train on for half of it, then save; default: save at once",
    )

    @property
    def is_planned(self) -> bool:
        """True if the process ends early without a signal."""
        return self.interval is not None or self.minutes is not None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RecomputeConfig:
    """Settings for recomputing activations in the backward pass."""

    granularity: str | None = flag(
        None, "--recompute-granularity", choices=("full", "selective"), help="granularity; full: recompute whole blocks"
    )
    method: str | None = flag(
        None, "--recompute-method", choices=("block", "uniform"), help="blocks to recompute; block: the first N ones"
    )
    num_layers: int = flag(0, "--recompute-num-layers", at_least=0, help="recompute the first N blocks as a whole")
    num_offloaded: int = flag(
        0,
        "--cpu-offloading-num-layers",
        at_least=0,
        help="keep the inputs of the first N recomputed blocks in the host's memory until the backward pass",
    )
    selective: bool = flag(False, "--selective_recom", help="recompute feed-forwards only")
    num_feed_forwards: int = flag(
        32, "--recom_ffn_layers", at_least=0, help="recompute the feed-forwards of the first N blocks"
    )

    def problems(self):
        if self.granularity == "selective":
            yield "granularity", "selective: use --selective_recom --recom_ffn_layers N"
        if self.method == "uniform":
            yield "method", "uniform: only block is supported"
        if self.num_layers and self.granularity != "full":
            yield "num_layers", f"{self.num_layers}: needs --recompute-granularity full --recompute-method block"
        if self.num_offloaded > self.num_layers:
            yield (
                "num_offloaded",
                f"{self.num_offloaded}: only the inputs of recomputed blocks wait on the host, and --recompute-num-layers is "
                f"{self.num_layers}; give it {self.num_offloaded} or more",
            )
        if self.num_layers and self.selective:
            yield (
                "selective",
                f"excludes --recompute-num-layers {self.num_layers}: recompute feed-forwards or whole blocks, not both",
            )

    @property
    def feed_forwards(self) -> int:
        """Number of blocks whose feed-forward is recomputed."""
        return self.num_feed_forwards if self.selective else 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFlags:
    """Flags of every program that trains: what `training/trainer.py` and `training/data.py` read."""

    mm_model: str = flag("", "--mm-model", required=True, metavar="JSON", help="the networks and their weights")
    mm_data: str = flag("", "--mm-data", required=True, metavar="JSON", help="data.json: lists, filters, loader")
    seed: int = flag(1234, "--seed", at_least=0, at_most=2**63 - 1, help="seed of all random numbers")
    launch: LaunchConfig = group(LaunchConfig, "device", only=("device", "mindspeed", "timeout_minutes"))
    ranks: RanksConfig = group(RanksConfig, "starting processes")
    micro_batch_size: int = flag(
        1, "--micro-batch-size", at_least=1, section=_BATCHES, help="samples that a rank handles at a time"
    )
    global_batch_size: int = flag(
        0,
        "--global-batch-size",
        at_least=1,
        section=_BATCHES,
        help="samples per step; default: one micro-batch per data rank",
    )
    train_iters: int = flag(
        1, "--train-iters", required=True, at_least=1, unit="steps", section=_BATCHES, help="length of the run"
    )
    num_workers: int | None = flag(
        None,
        "--num-workers",
        at_least=0,
        at_most=1024,
        section=_BATCHES,
        help="decoding processes per rank; default: the data JSON's",
    )
    probe: bool = flag(
        False, "--probe", section=_DATA, help="read size, fps and length that the lists omit from the files"
    )
    max_bad_fraction: float = flag(
        0.5,
        "--max-bad-fraction",
        at_least=0,
        at_most=1,
        section=_DATA,
        help="largest share of bad files among the tried ones; the run ends above it",
    )
    data_ledger: str | None = flag(
        None,
        "--data-ledger",
        metavar="DIR",
        section=_DATA,
        help="directory for lists of dropped rows and bad files; default: --save/data",
    )
    dtype: str = switches("fp32", {"--bf16": _BF16}, section=_PRECISION)
    optimizer: OptimizerSettings = group(OptimizerSettings, "optimizer")
    checkpoint: CheckpointConfig = group(CheckpointConfig, "checkpoints")
    evaluation: EvaluationConfig = group(EvaluationConfig, "evaluation while training")
    mm_tool: str | None = flag(
        None, "--mm-tool", metavar="JSON", section=_REPORTS, help="tools.json with the profiler's settings"
    )
    report: ReportConfig = group(ReportConfig, _REPORTS)
    exit: ExitConfig = group(ExitConfig, "ending early: saves, exit code 0; the next start goes on")
    tools: ToolConfig = ToolConfig()  # the content of mm_tool
    flags: tuple[tuple[str, object], ...] = ()  # as given, kept in the checkpoint as Megatron's `args`

    def completed(
        self, fields: "type[TrainingFlags]", data_size: int, given: Mapping[str, object], notes: Notes
    ) -> dict[str, Any]:
        """The values of a class's fields, completed by what all programs derive alike: the batch, the length of the
        decay, the ledger's folder, the profiler.

        data_size: number of data ranks. given: every flag's value.
        """
        decay_iters = checks.decay_iters(self.optimizer, self.train_iters)
        global_batch = self.global_batch_size or self.micro_batch_size * data_size
        checks.check_total(self.micro_batch_size, global_batch, data_size)
        save = self.checkpoint.save
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(fields)},
            "global_batch_size": global_batch,
            "optimizer": dataclasses.replace(self.optimizer, lr_decay_iters=decay_iters),
            "data_ledger": self.data_ledger or (os.path.join(save, "data") if save else None),
            "tools": build(ToolConfig, read_json(self.mm_tool), notes) if self.mm_tool else ToolConfig(),
            "flags": of_the_run(given),
        }

    def with_workers(self, data: DataConfig) -> DataConfig:
        """The data JSON with the number of decoding processes that --num-workers asks for."""
        if self.num_workers is None:
            return data
        loader = dataclasses.replace(data.dataloader_param, num_workers=self.num_workers)
        return dataclasses.replace(data, dataloader_param=loader)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunFlags(TrainingFlags):
    """The flags of `mindspeed-mm train`."""

    launch: LaunchConfig = group(LaunchConfig, "device and layout", without=("guidance_parallel",))
    listed: ListFlags = group(ListFlags, "the list and its captions, instead of the data JSON's")
    max_empty_captions: float = flag(
        0.5,
        "--max-empty-captions",
        metavar="FRACTION",
        at_least=0,
        at_most=1,
        section=_DATA,
        help="largest share of captions that cleaning empties (Chinese, for example); the run does not start above it",
    )
    dtype: str = switches(
        "fp32",
        {"--bf16": _BF16, "--fp16": ("fp16", "fp16 weights, fp32 main weights, loss scaling")},
        section=_PRECISION,
    )
    custom_precision: bool = flag(
        False,
        "--model_custom_precision",
        section=_PRECISION,
        help="take each component's precision from the JSON (ae.dtype, weight_dtype)",
    )
    fp8_format: str | None = flag(
        None,
        "--fp8-format",
        choices=("e4m3", "hybrid"),
        section=_PRECISION,
        help="run the products of attention and feed-forward linears in float8 (CUDA of capability 8.9 and newer, "
        "CPU); hybrid: gradients in e5m2; default: in the precision of the weights",
    )
    optimizer: OptimizerSettings = group(OptimizerSettings, "optimizer", required=("lr",))
    adapter: AdapterConfig = group(AdapterConfig, "adapters: train a small part beside a frozen network")
    trained: TrainedConfig = group(TrainedConfig, "partial training")
    distill: DistillConfig = group(DistillConfig, "distillation: learn from a frozen teacher")
    recompute: RecomputeConfig = group(RecomputeConfig, _RECOMPUTATION)
    compile: bool = flag(False, "--compile", section="speed", help="torch.compile the denoiser's blocks (CUDA, CPU)")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionFlags(RunFlags):
    """The flags of `mindspeed-mm extract`: those of a training run; flags that do not affect features may be
    omitted.
    """

    train_iters: int = flag(
        1, "--train-iters", at_least=1, unit="steps", section=_BATCHES, help="length of the run; no effect here"
    )
    optimizer: OptimizerSettings = group(OptimizerSettings, "optimizer")
    only: str | None = flag(None, "--only", choices=("video", "text"), help="extract only this part; default: both")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(RunFlags):
    """All settings of a training run: the flags, and values derived from them and from the JSONs."""

    precision: PrecisionConfig
    model: TrainModelConfig
    data: DataConfig
    autoencoder_weights: str  # ae.from_pretrained
    stored: StoredFeatures | None  # None: clips and captions are encoded in every step
