"""AdamW's state on the host: main weights, moments and averages come to the device in parts, for the update alone.

The update of each shard runs on the device, by the same kernels as without this, so every number is the same. While a
part is updated, the next one is on its way to the device and the one before is on its way back.

megatron-core's own `optimizer_cpu_offload` (0.16.1) keeps the fp32 main weights on the device as well, which are as
large as a half of the moments. It knows tensors by `is_cuda`, so it moves nothing of an NPU; it knows no averages; and it
does not read weights again that a checkpoint has restored.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.overrides import TorchFunctionMode

from mindspeed_mm.config.optimizer import UPDATE_PART, OptimizerSettings
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.main_weights import MainWeights
from mindspeed_mm.platforms.copies import Copies

_ARENA = 2**28  # numbers in one piece of the host's memory, 1 GiB: torch rounds pinned pieces up to a power of two
_ALIGNED = 64  # numbers, of a tensor's place on the device: kernels read 16 bytes at once
_FP32 = 4
_GIB = 2**30


@contextlib.contextmanager
def main_weights_on_host(settings: OptimizerSettings, network: nn.Module, parallel: ParallelContext) -> Iterator[None]:
    """Context in which Megatron makes its main weights on the host, with --optimizer-cpu-offload.

    Raises ConfigError if the host has too little memory for the whole state.
    """
    if not settings.cpu_offload:
        yield
        return
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    numbers = sum(parameter.numel() for parameter in trained)
    if settings.use_distributed_optimizer:
        numbers //= parallel.data_and_context.size()
    kinds = 2 + (trained[0].dtype != torch.float32) + settings.use_ema
    _check(numbers * kinds * _FP32, psutil.virtual_memory().available, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with _FloatOnHost():
        yield


def _check(needed: int, free: int, ranks: int) -> None:
    """free: bytes of the host's memory for all of its ranks."""
    if needed * ranks > free:
        raise ConfigError(
            f"--optimizer-cpu-offload: the state of the {ranks} rank(s) on this host takes {needed * ranks / _GIB:.1f} GiB, "
            f"and {free / _GIB:.1f} GiB of its memory are free; give --use-distributed-optimizer and more hosts, or leave "
            "out --use-ema or --optimizer-cpu-offload"
        )


class _FloatOnHost(TorchFunctionMode):
    """Makes `Tensor.float` of a 16-bit tensor fp32 memory of the host: Megatron makes each main weight by this method."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float and args[0].dtype in (torch.bfloat16, torch.float16):
            return args[0].detach().to("cpu", torch.float32)
        return func(*args, **(kwargs or {}))


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """Shards that are updated together: their group of the optimizer and, of the state on the host, a list of each kind."""

    group: dict[str, Any]
    numbers: list[int]
    homes: dict[str, list[Tensor]]

    def flat(self) -> list[Tensor]:
        return [home for kind in self.homes.values() for home in kind]


class HostState:
    """The state of an AdamW on the host, and its update."""

    def __init__(self, optimizer: Any, main: MainWeights, copies: Copies):
        """optimizer: Megatron's, made within `main_weights_on_host`. main: its main weights; those that are not the
        network's own memory move into pinned memory.
        """
        self._optimizer = optimizer
        self._main = main
        self._copies = copies
        self._averages: Callable[[], list[Tensor]] | None = None
        self._decay: Callable[[], float] | None = None
        copied = [shard.main for shard, place in zip(main.shards, main.places, strict=True) if place is not None]
        for shard, home in zip(copied, self.keep(copied), strict=True):
            shard.data = home

    def average(self, averages: Callable[[], list[Tensor]], decay: Callable[[], float]) -> None:
        """From now on the update also moves averages, one from `keep` for each shard, towards the weights."""
        self._averages, self._decay = averages, decay

    @torch.no_grad()
    def keep(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Fp32 copies in the host's memory."""
        homes = self._memory(values)
        for home, value in zip(homes, values, strict=True):
            home.copy_(value)
        return homes

    def zeros(self, like: Sequence[Tensor]) -> list[Tensor]:
        """Zeros in the host's memory."""
        return [home.zero_() for home in self._memory(like)]

    def _memory(self, like: Sequence[Tensor]) -> list[Tensor]:
        """Fp32 tensors of the host of the same shapes, pinned where the device has it, in few large pieces."""
        left, rest, homes = sum(value.numel() for value in like), torch.empty(0), []
        for value in like:
            size = value.numel()
            if rest.numel() < size:
                rest = self._copies.memory(max(size, min(left, _ARENA)))
            homes.append(rest[:size].view(value.shape))
            rest, left = rest[size:], left - size
        return homes

    @torch.no_grad()
    def update(self) -> None:
        """Runs one AdamW step, moves the averages, and copies the weights to their places in the network on this rank.

        The host waits for the end, since checkpoints read its memory.
        """
        parts, copies = self._parts(), self._copies
        if not parts:
            return
        device = self._main.gradients()[0].device
        size = max(sum(_aligned(home.numel()) for home in part.flat()) for part in parts)
        places = [torch.empty(size, device=device) for _ in range(min(2, len(parts)))]
        left = [copies.mark() for _ in places]  # behind the last work that uses a place
        decay = None if self._decay is None else self._decay()
        coming = self._fetch(parts[0], places[0], left[0])
        for number, part in enumerate(parts):
            twins, arrived = coming
            if number + 1 < len(parts):
                following = (number + 1) % len(places)
                coming = self._fetch(parts[number + 1], places[following], left[following])
            copies.wait(arrived)
            self._step(part, twins, decay)
            left[number % len(places)] = copies.store(part.flat(), twins, copies.mark())
        for mark in left:
            copies.settle(mark)

    def _parts(self) -> list[_Part]:
        """Of at most UPDATE_PART numbers, or of one shard; two of them are on the device, up to 16 bytes for each number."""
        shards, state = self._main.shards, self._optimizer.optimizer.state
        averages = None if self._averages is None else self._averages()
        number_of = {id(shard.main): number for number, shard in enumerate(shards)}
        parts: list[_Part] = []
        for group in self._optimizer.param_groups:
            held = UPDATE_PART
            for parameter in group["params"]:
                held += parameter.numel()
                if held > UPDATE_PART:
                    parts.append(_Part(group, [], {}))
                    held = parameter.numel()
                number, homes = number_of[id(parameter)], parts[-1].homes
                parts[-1].numbers.append(number)
                for kind in ("exp_avg", "exp_avg_sq"):
                    homes.setdefault(kind, []).append(state[parameter][kind])
                if self._main.places[number] is not None:
                    homes.setdefault("main", []).append(parameter)
                if averages is not None:
                    homes.setdefault("average", []).append(averages[number])
        return parts

    def _fetch(self, part: _Part, place: Tensor, after: Any) -> tuple[list[Tensor], Any]:
        """Begins to copy a part to the device: its tensors there, in the order of `flat`, and a mark behind the copies."""
        twins, begin = [], 0
        for home in part.flat():
            twins.append(place[begin : begin + home.numel()].view(home.shape))
            begin += _aligned(home.numel())
        return twins, self._copies.fetch(twins, part.flat(), after)

    def _step(self, part: _Part, twins: list[Tensor], decay: float | None) -> None:
        remaining, gradients, state = iter(twins), self._main.gradients(), self._optimizer.optimizer.state
        found = {kind: [next(remaining) for _ in homes] for kind, homes in part.homes.items()}
        own = [self._main.shards[number].main for number in part.numbers]
        mains, group = iter(found.get("main", ())), part.group
        places = [self._main.places[number] for number in part.numbers]
        weights = [main if place is None else next(mains) for main, place in zip(own, places, strict=True)]
        adamw(
            weights,
            [gradients[number] for number in part.numbers],
            found["exp_avg"],
            found["exp_avg_sq"],
            [],
            [state[main]["step"] for main in own],
            foreach=False,
            fused=bool(group.get("fused")),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        if decay is not None:
            torch._foreach_mul_(found["average"], decay)
            torch._foreach_add_(found["average"], weights, alpha=1 - decay)
        for place, weight in zip(places, weights, strict=True):
            if place is not None:
                place.copy_(weight)


def _aligned(numbers: int) -> int:
    return -(-numbers // _ALIGNED) * _ALIGNED
