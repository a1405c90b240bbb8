"""What the rest of the package may ask of a device, and nothing more."""

import contextlib
import os

import torch


class Platform:
    """A kind of device. `prepare()` runs once, before `megatron.core` is imported; the other methods need it."""

    name = ""  # the torch device type: "cpu", "cuda" or "npu"
    backend = ""  # the torch.distributed backend that carries its tensors

    def prepare(self, allow_tf32: bool = False, allow_internal_format: bool = False) -> None:
        """Import and configure what the device needs. Errors name what is not installed."""

    def device(self, local_rank: int) -> torch.device:
        """The device of a process, made current."""
        raise NotImplementedError

    def engine_scope(self) -> contextlib.AbstractContextManager:
        """Surrounds calls into Megatron's optimizer and gradient buffers, where a device needs help there."""
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        """Wait for the device's queue; for timing."""

    def peak_memory(self) -> int:
        """Largest number of bytes that this process has held on the device."""
        raise NotImplementedError

    def reset_peak_memory(self) -> None:
        """Start a new measurement of `peak_memory`."""

    def total_memory(self) -> int:
        """Bytes of memory that this process may fill on its device."""
        raise NotImplementedError

    def release_memory(self) -> None:
        """Give memory that torch keeps for later back to the device."""

    def rng_state(self) -> torch.Tensor | None:
        """State of the device's own random numbers; None where the CPU's state is all there is."""
        return None

    def set_rng_state(self, state: torch.Tensor | None) -> None:
        """Restore what `rng_state` gave."""


def ordered_launches() -> None:
    """Megatron overlaps its TP collectives by the order of launches, which holds with one queue only."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
