"""One training step: micro-batches forward and backward, then the update."""

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
    """Loss over the global batch, what became of the gradients, and what went into them."""

    loss: float
    report: StepReport
    own_seconds: float  # until this rank's gradients were there, before it waits for those of the others
    data_seconds: float
    work: Work  # of this rank
    suspects: tuple[
        str, ...
    ]  # of a skipped step: files of all ranks, those with a loss that is not finite alone if any


class TrainStep:
    """Everything between two batches of data and two states of the weights."""

    def __init__(
        self,
        engine: Engine,
        encoders: FrozenEncoders,
        task: FlowMatchingTask,
        optimizer: OptimizerStep,
        micro_batches: int,
    ):
        """micro_batches: of this rank per step."""
        self.engine = engine
        self.encoders = encoders
        self.task = task
        self.optimizer = optimizer
        self.micro_batches = micro_batches
        self.family = families.of_config(task.denoiser)

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
            # Tokens that no sample has as real are not computed with; counted, they would flatter the MFU.
            text_tokens = int(sample.text.keep.any(0).sum())
            work.add(sample.latents.shape, text_tokens, self.task.denoiser, self.family)
            with self.engine.micro_batch(last=index == self.micro_batches - 1):
                losses.append((self._forward_backward(sample), sample.paths))
        self.engine.platform.synchronize()  # costs nothing: the gradient's norm is asked for next
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
        """Files of the step, of all data ranks; if the loss of some micro-batches is not finite, theirs."""
        mine = [(math.isfinite(value.item()), paths) for value, paths in losses]
        everyone: list = [None] * self.engine.parallel.data_size
        dist.all_gather_object(everyone, mine, group=self.engine.parallel.data)
        both = [item for rank in everyone for item in rank]
        spoilt = [path for finite, paths in both if not finite for path in paths]
        return tuple(spoilt or [path for _, paths in both for path in paths])
