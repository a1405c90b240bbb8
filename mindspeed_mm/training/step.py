"""One training step: forward and backward of the micro-batches, then the update."""

import dataclasses
import math
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from mindspeed_mm import families
from mindspeed_mm.optim.step import OptimizerStep, StepReport
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.training.encoders import Encoded, FrozenEncoders
from mindspeed_mm.training.metrics import Work
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.types import Batch


@dataclasses.dataclass(frozen=True, slots=True)
class StepResult:
    """Loss over the global batch, the fate of the gradients, and the work done."""

    loss: float
    report: StepReport
    own_seconds: float  # until this rank's gradients were ready, before it waits for other ranks
    data_seconds: float
    work: Work  # on this rank
    suspects: tuple[str, ...]  # of a skipped step: files on all ranks; if some losses are not finite, their files alone


class TrainStep:
    """Turns the batches of a step into an update of the weights."""

    def __init__(
        self,
        engine: Engine,
        encoders: FrozenEncoders,
        task: FlowMatchingTask,
        optimizer: OptimizerStep,
        micro_batches: int,
    ):
        """micro_batches: number per step on this rank."""
        self.engine = engine
        self.encoders = encoders
        self.task = task
        self.optimizer = optimizer
        self.micro_batches = micro_batches
        self.family = families.of_denoiser(task.denoiser)

    def __call__(self, batches: Iterator[Batch]) -> StepResult:
        began = time.perf_counter()
        self.engine.start_step()
        losses: list[tuple[torch.Tensor, tuple[str, ...]]] = []
        work, data_seconds = Work(), 0.0
        for index in range(self.micro_batches):
            start = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - start
            sample = self.encoders(batch)
            # Tokens that are padding in all samples are not computed; counting them would raise the MFU.
            text_tokens = int(sample.conditions.text.keep.any(0).sum())
            work.add(sample.latents.shape, text_tokens, self.task.denoiser, self.family)
            with self.engine.micro_batch(last=index == self.micro_batches - 1):
                losses.append((self._forward_backward(sample), sample.paths))
        self.engine.platform.synchronize()  # free: the gradient norm is read next
        own_seconds = time.perf_counter() - began
        report = self.optimizer()
        loss = torch.stack([value for value, _ in losses]).sum()
        suspects = self._suspects(losses) if report.skipped else ()
        return StepResult(self._mean_over_data(loss), report, own_seconds, data_seconds, work, suspects)

    def _forward_backward(self, sample: Encoded) -> torch.Tensor:
        loss = self.task.loss(self.engine.ddp, sample) / self.micro_batches
        self.engine.backward(loss)
        return loss.detach()

    def _mean_over_data(self, loss: torch.Tensor) -> float:
        group = self.engine.parallel.data
        if group.size() > 1:
            dist.all_reduce(loss, group=group)
        return loss.item() / group.size()

    def _suspects(self, losses: list[tuple[torch.Tensor, tuple[str, ...]]]) -> tuple[str, ...]:
        """Files of the step on all data ranks. If some micro-batches have a loss that is not finite, only their files."""
        mine = [(math.isfinite(value.item()), paths) for value, paths in losses]
        everyone: list = [None] * self.engine.parallel.data_size
        dist.all_gather_object(everyone, mine, group=self.engine.parallel.data)
        both = [item for rank in everyone for item in rank]
        spoilt = [path for finite, paths in both if not finite for path in paths]
        return tuple(spoilt or [path for _, paths in both for path in paths])
