"""One training step: forward and backward of the micro-batches, then the update.

What is trained is an `Objective`: `denoising.py` and `autoencoder.py` have one each. All else of a step is the same.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_mm.optim.step import OptimizerStep, StepReport
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.training.metrics import Work
from mindspeed_mm.types import Batch


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """Loss of a micro-batch.

    value: scalar with gradients. parts: scalars without gradients, reported by their names. paths: the files behind it.
    """

    value: Tensor
    work: Work
    paths: tuple[str, ...]
    parts: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


class Objective(Protocol):
    """Turns a micro-batch into a loss; its parts have the same names in every micro-batch."""

    def __call__(self, network: Callable[..., Any], batch: Batch) -> Loss: ...


@dataclasses.dataclass(frozen=True, slots=True)
class StepResult:
    """Loss over the global batch, the fate of the gradients, and the work done."""

    loss: float
    report: StepReport
    own_seconds: float  # until this rank's gradients were ready, before it waits for other ranks
    data_seconds: float
    work: Work  # on this rank
    suspects: tuple[str, ...]  # of a skipped step: files on all ranks; if some losses are not finite, their files alone
    parts: dict[str, float] = dataclasses.field(default_factory=dict)  # of the loss, over the global batch


class Step(Protocol):
    """What the trainer uses of a step."""

    engine: Engine
    optimizer: OptimizerStep

    def __call__(self, batches: Iterator[Batch]) -> StepResult: ...


class TrainStep:
    """Turns the batches of a step into an update of the weights."""

    def __init__(self, engine: Engine, objective: Objective, optimizer: OptimizerStep, micro_batches: int):
        """micro_batches: number per step on this rank."""
        self.engine = engine
        self.objective = objective
        self.optimizer = optimizer
        self.micro_batches = micro_batches

    def __call__(self, batches: Iterator[Batch]) -> StepResult:
        platform = self.engine.platform
        began = platform.moment()
        self.engine.start_step()
        losses: list[Loss] = []
        work, data_seconds = Work(), 0.0
        for index in range(self.micro_batches):
            start = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - start
            with self.engine.micro_batch(last=index == self.micro_batches - 1):
                losses.append(self._forward_backward(batch))
            work.add(losses[-1].work)
        ready = platform.moment()
        sums, mine = self._sums_over_data(losses), torch.stack([loss.value for loss in losses])
        report, read = self.optimizer([sums, mine])
        loss, *values = (value / self.engine.parallel.data.size() for value in read[: len(sums)])
        suspects = self._suspects(losses, read[len(sums) :]) if report.skipped else ()
        parts = dict(zip(losses[0].parts, values, strict=True))
        return StepResult(loss, report, platform.seconds(began, ready), data_seconds, work, suspects, parts)

    def _forward_backward(self, batch: Batch) -> Loss:
        """The loss without its graph, as this micro-batch's share of the step."""
        loss = self.objective(self.engine.ddp, batch)
        value = loss.value / self.micro_batches
        self.engine.backward(value)
        parts = {name: part / self.micro_batches for name, part in loss.parts.items()}
        return dataclasses.replace(loss, value=value.detach(), parts=parts)

    def _sums_over_data(self, losses: list[Loss]) -> Tensor:
        """Sums over the data ranks [1 + number of parts], on the device: of the loss, then of its parts."""
        group, names = self.engine.parallel.data, list(losses[0].parts)
        sums = [torch.stack([loss.value for loss in losses]).sum()]
        sums += [torch.stack([loss.parts[name] for loss in losses]).sum() for name in names]
        total = torch.stack(sums)
        if group.size() > 1:
            dist.all_reduce(total, group=group)
        return total

    def _suspects(self, losses: list[Loss], values: list[float]) -> tuple[str, ...]:
        """Files of a skipped step on all data ranks; collective. If some micro-batches have a loss that is not finite, only
        their files. values: of this rank's losses.
        """
        mine = [(math.isfinite(value), loss.paths) for value, loss in zip(values, losses, strict=True)]
        everyone: list = [None] * self.engine.parallel.data_size
        dist.all_gather_object(everyone, mine, group=self.engine.parallel.data)
        both = [item for rank in everyone for item in rank]
        spoilt = [path for finite, paths in both if not finite for path in paths]
        return tuple(spoilt or [path for _, paths in both for path in paths])
