"""One training step: micro-batches forward and backward, then the update."""

import dataclasses
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from mindspeed_mm.optim.step import OptimizerStep, StepReport
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.training.encoders import FrozenEncoders
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.types import Batch


@dataclasses.dataclass(frozen=True, slots=True)
class StepResult:
    """Loss over the global batch, what became of the gradients, and this rank's files."""

    loss: float
    report: StepReport
    data_seconds: float
    paths: tuple[str, ...]


class TrainStep:
    """Everything between two batches of data and two states of the weights."""

    def __init__(
        self,
        engine: Engine,
        encoders: FrozenEncoders,
        task: FlowMatchingTask,
        optimizer: OptimizerStep,
        micro_batches: int,
        samples: int,
    ):
        """micro_batches: of this rank per step; samples: of all ranks per step."""
        self.engine = engine
        self.encoders = encoders
        self.task = task
        self.optimizer = optimizer
        self.micro_batches = micro_batches
        self.samples = samples

    def __call__(self, batches: Iterator[Batch]) -> StepResult:
        self.engine.start_step()
        total = torch.zeros((), device=self.encoders.device)
        paths: list[str] = []
        data_seconds = 0.0
        for index in range(self.micro_batches):
            start = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - start
            paths.extend(batch.paths)
            sample = self.encoders(batch)
            with self.engine.micro_batch(last=index == self.micro_batches - 1):
                loss = self.task.loss(self.engine.ddp, sample) / self.micro_batches
                self.engine.backward(loss)
            total += loss.detach()
        report = self.optimizer(self.samples)
        return StepResult(self._mean_over_data(total), report, data_seconds, tuple(paths))

    def _mean_over_data(self, loss: torch.Tensor) -> float:
        group = self.engine.parallel.data
        if group.size() > 1:
            dist.all_reduce(loss, group=group)
        return loss.item() / group.size()
