"""The interface of a device for the rest of the package."""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms.copies import Copies


class Platform:
    """A kind of device. `prepare()` runs once, before `megatron.core` is imported; the other methods need it."""

    name = ""  # the torch device type: "cpu", "cuda" or "npu"
    backend = ""  # the torch.distributed backend for its tensors
    shares_memory = False  # True if a process can read what another of the same machine writes into memory of both
    fused_adamw = False  # True if torch.optim.AdamW(fused=True) is one kernel per tensor on this device

    def prepare(self, allow_tf32: bool = False, allow_internal_format: bool = False) -> None:
        """Imports and configures the device's packages. Errors name a missing one."""

    def device(self, local_rank: int) -> torch.device:
        """Device of a process; also makes it current."""
        raise NotImplementedError

    def engine_scope(self) -> contextlib.AbstractContextManager:
        """Context around calls into Megatron's optimizer and gradient buffers, for devices that need help there."""
        return contextlib.nullcontext()

    def ema_adamw_kernel(self) -> Callable | None:
        """Kernel that updates weights and their moving average at once (see optim.ema_adamw), or None."""
        return None

    def synchronize(self) -> None:
        """Waits for the device's queue; for timing."""

    def moment(self) -> Any:
        """The moment at which the device has done all that was queued so far; for `seconds`. Does not wait."""
        return time.perf_counter()

    def seconds(self, begin: Any, end: Any) -> float:
        """Seconds between two moments, both of which have passed: the host has read a result that was queued later."""
        return end - begin

    def peak_memory(self) -> int:
        """Largest number of bytes that this process has held on the device."""
        raise NotImplementedError

    def reset_peak_memory(self) -> None:
        """Starts a new measurement of `peak_memory`."""

    def total_memory(self) -> int:
        """Memory in bytes that this process may use on its device."""
        raise NotImplementedError

    def check_float8(self, dtype: torch.dtype) -> None:
        """Raises ConfigError if the device cannot multiply float8 numbers into results of `dtype`."""
        raise ConfigError(f"--fp8-format: {self.name} devices have no products in float8 here; leave the option out")

    def copies(self) -> Copies:
        """How frozen weights come from the host."""
        return Copies()

    def available_memory(self) -> int:
        """Bytes that this process may hold on its device now: those that are free, and those that it holds."""
        return self.total_memory()

    def release_memory(self) -> None:
        """Returns torch's cached memory to the device."""

    def peak_tflops(self, dtype: torch.dtype) -> float | None:
        """Dense peak of one device in this precision, for MFU; None if unknown."""
        return None

    def profiler(self, settings):
        """A profiler with start(), step() and stop(), like torch.profiler.profile, that writes its trace itself.

        settings: `static_param` of tools.json (config.tool.StaticProfile).
        """
        return torch.profiler.profile(
            activities=self._activities(settings.with_cpu),
            schedule=torch.profiler.schedule(**profile_window(settings)),
            on_trace_ready=torch.profiler.tensorboard_trace_handler(settings.save_path),
            record_shapes=settings.record_shapes,
            profile_memory=settings.with_memory,
            with_stack=settings.with_stack,
        )

    def dynamic_profiler(self, config_path: str) -> Any:
        """The profiler for `profile_type: dynamic`, which a file in this folder switches on and off."""
        raise ConfigError(f"profile.profile_type: 'dynamic' is there on NPUs only, not on {self.name}; use 'static'")

    def _activities(self, with_cpu: bool) -> list:
        return [torch.profiler.ProfilerActivity.CPU]

    def rng_state(self) -> torch.Tensor | None:
        """State of the device's random numbers; None if there is only the CPU's state."""
        return None

    def set_rng_state(self, state: torch.Tensor | None) -> None:
        """Restores a result of `rng_state`."""


def ordered_launches() -> None:
    """Sets one launch queue: Megatron overlaps its TP collectives by the order of launches, which needs a single
    queue.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def connections_on_demand() -> None:
    """Makes gloo groups connect two ranks on first use.

    By default each of Megatron's groups, most of them unused, opens a socket to every member at once: 93 sockets per
    process at 8 ranks instead of 35, and thousands at 512.
    """
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")


@contextlib.contextmanager
def cuda_type_names():
    """Makes `Tensor.type()` return "torch.cuda.FloatTensor" on every device, since Megatron's optimizer compares such
    strings.
    """
    true_type = torch.Tensor.type

    def type_(self, *args, **kwargs):
        result = true_type(self, *args, **kwargs)
        if isinstance(result, str) and result.startswith("torch."):
            return "torch.cuda." + result.rpartition(".")[2]
        return result

    torch.Tensor.type = type_  # pyright: ignore[reportAttributeAccessIssue]  # replaced for a while
    try:
        yield
    finally:
        torch.Tensor.type = true_type


def profile_window(settings) -> dict[str, int]:
    """Arguments of a profiler's schedule: the steps start_step <= step < end_step, after one warm-up step."""
    warmup = min(1, settings.start_step - 1)
    active = settings.end_step - settings.start_step
    return {"skip_first": settings.start_step - 1 - warmup, "wait": 0, "warmup": warmup, "active": active, "repeat": 1}
