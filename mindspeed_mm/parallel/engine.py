"""What training uses of the engine that runs a network, its gradients and its optimizer."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.schedule import Schedule
from mindspeed_mm.platforms.base import Platform


@dataclasses.dataclass(frozen=True, slots=True)
class MainShard:
    """The fp32 main weights of one parameter that this rank updates: flattened elements start..end."""

    name: str
    main: Tensor  # shares storage with the optimizer's tensor
    start: int
    end: int
    shape: torch.Size  # shape of the whole (TP-local) parameter


class Engine(Protocol):
    """Forward, backward and optimizer step of one network; `megatron_engine.py` has the one in use.

    The parts of a step are separate, so that `optim/step.py` can clip, skip and update the EMA between them.
    """

    network: nn.Module
    parallel: ParallelContext
    platform: Platform

    @property
    def ddp(self) -> nn.Module:
        """The network as training calls it: its backward pass exchanges gradients."""
        ...

    @property
    def scheduler(self) -> Schedule:
        """The learning-rate schedule, once `schedule` has started it."""
        ...

    @property
    def shares_weights(self) -> bool:
        """True if each data rank has its own `main_shards`, False if every one has all of them."""
        ...

    @property
    def lowest_loss_scale(self) -> float:
        """Lower limit of fp16's loss scale; the scale itself if it is constant."""
        ...

    def replace_inner(self, make: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]) -> None:
        """Replaces the AdamW inside by make(AdamW), over the same parameter groups."""
        ...

    def keep(self, values: list[Tensor]) -> list[Tensor]:
        """Fp32 copies of main weights in memory of the optimizer's state: on the device, or on the host."""
        ...

    def average_in_update(self, averages: Callable[[], list[Tensor]], decay: Callable[[], float]) -> bool:
        """With the optimizer's state on the host: True, and from now on `update` also moves the averages, one from `keep` for
        each of `main_shards`, towards the weights. Else False.
        """
        ...

    def schedule(self, global_batch_size: int) -> None:
        """Starts the learning-rate schedule."""
        ...

    def start_step(self) -> None:
        """Clears the gradients."""
        ...

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager:
        """Context around forward and backward of a micro-batch; gradients are exchanged in the last one only."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradients of a scalar loss, with fp16's loss scale."""
        ...

    def loss_scale(self) -> float:
        """fp16's loss scale, which the host knows without asking the device; 1 in other precisions."""
        ...

    def finish_gradients(self) -> Tensor:
        """Averages the gradients over the data ranks and passes them to the main weights.

        Returns fp32 [2] on the device, the same on every rank: the square of the L2 norm of the whole network's gradient,
        and more than 0 if fp16 overflowed. The host reads nothing here; `note_overflow` must follow.
        """
        ...

    def note_overflow(self, overflow: bool) -> None:
        """Adjusts fp16's loss scale after a step's gradients; does nothing in other precisions."""
        ...

    def scale_gradients(self, factor: float) -> None:
        """Multiplies all gradients."""
        ...

    def update(self) -> None:
        """Runs one AdamW step on the main weights; the next training forward pass has them on every rank."""
        ...

    def advance_schedule(self) -> None: ...

    def learning_rate(self) -> float: ...

    def main_shards(self) -> list[MainShard]:
        """This rank's main weights, in the order of the network's parameters."""
        ...

    def moments(self) -> dict[str, list[Tensor]]:
        """AdamW's two moments, "exp_avg" and "exp_avg_sq", one tensor for each of `main_shards`."""
        ...

    def counters(self) -> dict:
        """The rest of the optimizer's state: step count and fp16's loss scale."""
        ...

    def load_counters(self, state: dict) -> None:
        """Restores a result of `counters`."""
        ...

    def publish(self) -> None:
        """Copies the main weights into the network on every rank; collective.

        Call it before any reader other than a training forward pass, and after any writer of main weights other than
        `update`.
        """
        ...

    def weights_of(self, values: list[Tensor]) -> contextlib.AbstractContextManager[None]:
        """Context in which the network has other weights, one tensor for each of `main_shards`; collective."""
        ...

    def weights_changed(self) -> None:
        """Copies the network's weights into the main weights, after loading a file."""
        ...
