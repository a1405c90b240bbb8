"""Small training runs on gloo ranks, with made-up latents instead of clips: the same data at every layout."""

import dataclasses
import functools

import torch

from mindspeed_mm.adapters.attach import attach_trained, set_aside
from mindspeed_mm.adapters.base import hold_base, loads_on_host
from mindspeed_mm.adapters.record import AdapterRecord
from mindspeed_mm.config.distillation import DistillConfig, Distilled
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.config.run import (
    CheckpointConfig,
    ExitConfig,
    OptimizerSettings,
    ReportConfig,
    TrainingFlags,
)
from mindspeed_mm.config.trained import TrainedConfig, lr_factors, trained_names
from mindspeed_mm.data.feed.ledger import Ledger
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig, parameters
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.models.denoiser import Conditions
from mindspeed_mm.models.float8 import use_float8
from mindspeed_mm.optim.adaptive_clip import AdaptiveClip, FixedClip
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.optim.step import OptimizerStep
from mindspeed_mm.parallel import shards
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.megatron_engine import MegatronEngine
from mindspeed_mm.parallel.seeds import generator
from mindspeed_mm.platforms.copies import Copies
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.training.denoising import Denoising
from mindspeed_mm.training.distillation import Teacher
from mindspeed_mm.training.encoders import Encoded
from mindspeed_mm.training.saving import Saver
from mindspeed_mm.training.state import TrainingState
from mindspeed_mm.training.step import StepResult, TrainStep
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.training.teaching import task_of
from mindspeed_mm.training.trainer import Trainer
from mindspeed_mm.types import ImageFeatures, TextFeatures
from mindspeed_mm.weights import load_denoiser

DENOISER = SparseUMMDiTConfig(
    num_layers=(1, 1, 1),
    sparse_n=(1, 2, 1),
    sparse1d=True,
    double_ff=True,
    skip_connection=True,
    num_heads=4,
    head_dim=16,
    in_channels=4,
    caption_channels=12,
    pooled_projection_dim=6,
    timestep_embed_dim=16,
)
FOUR_BLOCKS = dataclasses.replace(DENOISER, num_layers=(1, 2, 1))  # with a block that skips in groups
GLOBAL_BATCH = 4
SEED = 5
_EVERY_STEP = ReportConfig(log_interval=1)
_NO_EXITS = ExitConfig()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run is spread over its ranks, and in what precision."""

    tensor: int = 1
    context: int = 1
    sequence_parallel: bool = False
    micro_batch: int = 1
    distributed_optimizer: bool = True
    overlap: bool = False
    overlap_gather: bool = True  # if overlap, also of the weights
    bucket: int | None = None
    dtype: str = "fp32"
    clip_decay: float | None = None
    recompute_blocks: int = 0
    recompute_feed_forwards: int = 0
    fp8_format: str | None = None
    share_memory: bool = False  # exchanges through memory instead of gloo
    compile: str | None = None  # a backend of torch.compile
    dropout: float = 0.0
    adapter: AdapterConfig | None = None
    train_only: tuple[str, ...] = ()
    lr_multipliers: tuple[str, ...] = ()
    distill: DistillConfig = DistillConfig()
    teacher_seed: int = 11  # of the teacher's weights; also its fingerprint


@dataclasses.dataclass(frozen=True)
class FakeBatch:
    """Names of samples in the endless stream 0, 1, 2, ...; what `next(batches)` gives a TrainStep."""

    numbers: tuple[int, ...]

    @property
    def paths(self):
        return tuple(f"sample{number}" for number in self.numbers)


class Stream:
    """This rank's micro-batches of the samples 0, 1, 2, ..., without those in `skip`; a loader with a position."""

    def __init__(self, parallel: ParallelContext, micro_batch: int, skip: tuple[int, ...] = ()):
        self.numbers = [number for number in range(400) if number not in skip]
        self.rank, self.ranks, self.micro_batch = parallel.data_rank, parallel.data_size, micro_batch
        self.seen = 0
        self.ledger = Ledger()

    def __iter__(self):
        return self

    def __next__(self) -> FakeBatch:
        width = self.micro_batch * self.ranks
        window = self.numbers[self.seen : self.seen + width]
        self.seen += width
        return FakeBatch(tuple(window[self.rank :: self.ranks]))

    def seek(self, samples: int) -> None:
        self.seen = samples

    def state_dict(self) -> dict:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict) -> None:
        self.seen = state["seen"]


class At:
    """A loader that does something before it hands out the data of a step."""

    def __init__(self, loader, step: int, action):
        self.loader, self.batches, self.left, self.action = loader, iter(loader), step, action
        self.ledger = loader.ledger

    def __iter__(self):
        return self

    def __next__(self):
        self.left -= 1
        if self.left == 0:
            self.action()
        return next(self.batches)

    def state_dict(self) -> dict:
        return self.loader.state_dict()


class FakeEncoders:
    """Latents and text of a sample from its number alone; `spoil` maps a number to a factor of its latents.

    mask_channels: of an image condition; 0 makes none.
    """

    device = torch.device("cpu")

    def __init__(self, spoil: dict[int, float] | None = None, mask_channels: int = 0):
        self.spoil = spoil or {}
        self.mask_channels = mask_channels

    def __call__(self, batch: FakeBatch) -> Encoded:
        def draw(number, what, *shape):
            return torch.randn(shape, generator=generator(SEED, what, number))

        latents = torch.stack([draw(n, "z", 4, 2, 8, 8) * self.spoil.get(n, 1.0) for n in batch.numbers])
        text = TextFeatures(
            torch.stack([draw(n, "t", 8, 12) for n in batch.numbers]),
            torch.stack([torch.arange(8) < 3 + n % 5 for n in batch.numbers]),
            torch.stack([draw(n, "p", 6) for n in batch.numbers]),
        )
        keep = torch.ones(len(batch.numbers), 2, 8, 8, dtype=torch.bool)
        image = None
        if self.mask_channels:
            shown = torch.stack([draw(n, "mask", self.mask_channels, 2, 8, 8) for n in batch.numbers]).gt(0.5).float()
            image = ImageFeatures(latents * shown.amax(1, keepdim=True), shown)
        return Encoded(latents, Conditions(text, image), keep, tuple((0, n) for n in batch.numbers), batch.paths)


def negative_text() -> TextFeatures:
    """Features of the text in place of captions."""
    sequence = torch.randn(1, 8, 12, generator=generator(SEED, "negative"))
    return TextFeatures(sequence, torch.arange(8)[None] < 2, torch.zeros(1, 6))


class Run:
    """A TrainStep on this rank, and its stream of data."""

    def __init__(
        self,
        layout: Layout,
        checkpoint: CheckpointConfig | None = None,
        *,
        ema: bool = True,
        spoil: dict[int, float] | None = None,
        skip: tuple[int, ...] = (),
        lr: float = 1e-2,
        batch: int = GLOBAL_BATCH,
        optimizer: dict | None = None,
        denoiser: SparseUMMDiTConfig = DENOISER,
    ):
        """batch: the global batch; optimizer: more of OptimizerSettings."""
        self.layout = layout
        denoiser = dataclasses.replace(denoiser, dropout=layout.dropout)
        self.parallel = ParallelContext.start(
            tensor_size=layout.tensor,
            context_size=layout.context,
            sequence_parallel=layout.sequence_parallel,
            share_memory=layout.share_memory,
        )
        self.network = build_denoiser(
            denoiser,
            self.parallel,
            dtype=layout.dtype,
            seed=3,
            recompute_blocks=layout.recompute_blocks,
            recompute_feed_forwards=layout.recompute_feed_forwards,
        ).train()
        record = None
        if layout.train_only:
            names = trained_names(TrainedConfig(only=layout.train_only), parameters(denoiser))
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name in names)
        if layout.adapter is not None:
            if loads_on_host(layout.adapter):
                self.blocks = hold_base(self.network, denoiser, layout.adapter, torch.device("cpu"), Copies())
            attach_trained(self.network, denoiser, layout.adapter, self.parallel, seed=7)
            record = AdapterRecord(layout.adapter, denoiser.model_id, base="3")
        if layout.fp8_format is not None:
            use_float8(self.network, layout.fp8_format, self.parallel)
        if layout.compile is not None:
            self.network.compile_blocks(layout.compile)
        settings = OptimizerSettings(
            lr=lr,
            hysteresis=1,
            use_distributed_optimizer=layout.distributed_optimizer,
            overlap_grad_reduce=layout.overlap,
            overlap_param_gather=layout.overlap and layout.overlap_gather and layout.distributed_optimizer,
            ddp_bucket_size=layout.bucket,
            # The loss scale is a little too high for this network, so that fp16 has to find it.
            **{"lr_decay_iters": 100, "initial_loss_scale": 2.0**20, **(optimizer or {})},
        )
        trained = TrainedConfig(only=layout.train_only, lr_multipliers=layout.lr_multipliers)
        factors = lr_factors(trained, parameters(denoiser), AdapterConfig())
        units = self.network.units()
        self.engine = MegatronEngine(self.network, self.parallel, CpuPlatform(), settings, units, factors)
        self.engine.schedule(batch)
        clip = AdaptiveClip(layout.clip_decay) if layout.clip_decay else FixedClip(1.0)
        self.ema = Ema(self.engine, 0.9999) if ema else None
        self.optimizer = OptimizerStep(self.engine, clip, self.ema, max_skipped_steps=5)
        self.micro_batches = batch // (layout.micro_batch * self.parallel.data_size)
        task, distilled = self.task(denoiser)
        encoders = FakeEncoders(spoil, denoiser.image_mask_channels)
        self.step = TrainStep(self.engine, Denoising(encoders, task), self.optimizer, self.micro_batches)
        self.stream = Stream(self.parallel, layout.micro_batch, skip)
        self.state = TrainingState(
            self.engine,
            self.optimizer,
            self.stream,
            checkpoint or CheckpointConfig(),
            adapter=record,
            distilled=distilled,
        )
        self.saver = Saver(self.state, functools.partial(load_denoiser, self.network))

    def task(self, denoiser: SparseUMMDiTConfig) -> tuple[FlowMatchingTask, Distilled | None]:
        """The run's task; with an adapter the network below it is the teacher."""
        plain, distill = FlowMatchingTask(DiffusionConfig(), denoiser, SEED), self.layout.distill
        if distill.method is None:
            return plain, None
        guided = distill.diffusion_of(plain.diffusion)
        if self.layout.adapter is None:
            seed, dtype = self.layout.teacher_seed, self.layout.dtype
            network = build_denoiser(denoiser, self.parallel, dtype=dtype, seed=seed).requires_grad_(False)
            teacher = Teacher(network, guided, negative_text())
        else:
            teacher = Teacher(self.network, guided, negative_text(), lambda: set_aside(self.network))
        return task_of(distill, plain, teacher), distill.record(plain.diffusion, str(self.layout.teacher_seed))

    def steps(self, count: int) -> list[StepResult]:
        """Train on."""
        results = []
        for _ in range(count):
            results.append(self.step(self.stream))
            self.state.iteration += 1
        return results

    def trainer(self, train_iters: int, report: ReportConfig = _EVERY_STEP, exits: ExitConfig = _NO_EXITS) -> Trainer:
        """The whole loop around the step, with what it saves, reports and watches."""
        config = TrainingFlags(
            checkpoint=self.state.settings,
            global_batch_size=GLOBAL_BATCH,
            train_iters=train_iters,
            report=report,
            exit=exits,
        )
        return Trainer(config, self.step, self.saver)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """Whole (TP-local) fp32 main weights on the first data rank."""
        main = self.engine.main_shards()
        return shards.gather(main, [shard.main for shard in main], list(dict(self.network.named_parameters())))

    def averages(self) -> dict[str, torch.Tensor] | None:
        names = list(dict(self.network.named_parameters()))
        return shards.gather(self.engine.main_shards(), self.ema.averages(), names)


def curve(layout: Layout, steps: int = 20, denoiser: SparseUMMDiTConfig = DENOISER) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step."""
    run = Run(layout, denoiser=denoiser)
    return [(result.loss, result.report.gradient_norm) for result in run.steps(steps)]
