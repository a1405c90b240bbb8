"""What NpuPlatform says and does on simulated NPUs."""

import types

import torch
from simulation.device import OnHost
from simulation.server import NPUS

from mindspeed_mm.config.tool import StaticProfile
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms.npu import NpuPlatform


def facts() -> types.SimpleNamespace:
    """Devices, memory, random numbers and the error for a process too many."""
    platform = NpuPlatform("off")
    device = platform.device(3)
    platform.reset_peak_memory()
    tensor = torch.empty(1 << 20, device=device)
    platform.synchronize()
    peak = platform.peak_memory()
    state = platform.rng_state()
    first = torch.npu.default_generators[3].initial_seed()
    torch.npu.manual_seed(17)
    changed = torch.npu.default_generators[3].initial_seed()
    platform.set_rng_state(state)
    restored = torch.npu.default_generators[3].initial_seed()
    try:
        platform.device(NPUS)
        error = ""
    except ConfigError as caught:
        error = str(caught)
    return types.SimpleNamespace(
        device=str(device),
        current=torch.npu.current_device(),
        tensor=str(tensor.device),
        peak=peak,
        seeds=(first, changed, restored),
        state_device=state.device.type,
        error=error,
        cuda_means_npu=torch.cuda.current_device() == 3 and torch.tensor([1.0]).to("cuda").device.type == "npu",
    )


def profiled(folder: str) -> None:
    """Two steps under the profiler, as the trainer drives it."""
    platform = NpuPlatform("off")
    device = platform.device(0)
    profiler = platform.profiler(StaticProfile(save_path=folder, start_step=1, end_step=2))
    with OnHost():
        profiler.start()
        for _ in range(2):
            (torch.ones(4, device=device) * 2).sum()
            profiler.step()
        profiler.stop()


def float64(seed: int) -> None:
    """Brings a float64 tensor to the device: most kernels have no such type."""
    device = NpuPlatform("off").device(0)
    with OnHost():
        torch.full((2,), seed, dtype=torch.float64).to(device) * 2
