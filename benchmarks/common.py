"""Shared parts of the benchmarks: medians of interleaved runs, peak memory, and one table."""

import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from table import table  # noqa: F401 (for the benchmarks)
from tensor_memory import TensorMemory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone that is not installed, too

from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.models.sparse_ummdit.model import SparseUMMDiT
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.types import TORCH_DTYPES, TextFeatures

# v1.5 has 4 dense blocks, and 8, 12 and 8 at sparsity 2, 4 and 8.
STAGES, SPARSITIES = (2, 4, 6, 8, 6, 4, 2), (1, 2, 4, 8, 4, 2, 1)


def measure(
    variants: dict[str, Callable[[], float | None]], repeats: int, device: str = "cpu"
) -> dict[str, tuple[float, float]]:
    """Median seconds of each variant, and the median of its returned value, such as the seconds of a part (or nan).

    They take turns, so that a disturbance of the machine meets all of them; the first round only warms up.
    """
    clock = clock_of(device)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for round_number in range(repeats + 1):
        for name, function in variants.items():
            synchronize(device)
            start = clock()
            part = function()
            synchronize(device)
            if round_number:
                seconds[name].append((clock() - start, math.nan if part is None else part))
    return {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True)) for name, rows in seconds.items()
    }


def void(_: object) -> None:
    """Drops a result."""


def clock_of(device: str) -> Callable[[], float]:
    """Wall-clock seconds; on one thread of a CPU its CPU seconds, which other programs on the machine disturb less."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def peak_bytes(function: Callable[[], object], device: str = "cpu") -> int:
    """Most bytes that were allocated inside and alive at once; weights and gradients of before do not count."""
    if device == "meta":  # nothing is allocated: the tensors are counted
        with TensorMemory() as memory:
            function()
        return memory.peak
    if device == "cpu":
        return _peak_of_the_allocator(function)
    torch.accelerator.synchronize()
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    function()
    torch.accelerator.synchronize()
    return torch.accelerator.max_memory_allocated() - before


def _peak_of_the_allocator(function: Callable[[], object]) -> int:
    """By the profiler's record of each allocation and release; exact, whatever else the machine does."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        function()
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        profiler.export_chrome_trace(trace.name)
        events = json.loads(Path(trace.name).read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))


def denoiser_config(
    width: int, stages: tuple[int, ...], sparsities: tuple[int, ...], sparse: bool
) -> SparseUMMDiTConfig:
    """v1.5's layout with fewer channels: heads of 128, condition a quarter of the width."""
    return SparseUMMDiTConfig(
        num_layers=stages,
        sparse_n=sparsities,
        sparse1d=sparse,
        double_ff=True,
        skip_connection=True,
        num_heads=width // 128,
        head_dim=128,
        in_channels=32,
        caption_channels=2048,
        pooled_projection_dim=1280,
        timestep_embed_dim=width // 4,
    )


def denoiser(config: SparseUMMDiTConfig, device: str, dtype: str) -> SparseUMMDiT:
    return build_denoiser(config, ParallelContext.current(), device=device, dtype=dtype, seed=0).train()


def denoiser_inputs(
    config: SparseUMMDiTConfig, extent: tuple[int, int, int], text_tokens: int, real_text: int, device: str, dtype: str
) -> tuple[torch.Tensor, torch.Tensor, TextFeatures]:
    """Latents of `extent` (t, h, w) patches, sigma and a caption of which `real_text` tokens are real; one sample."""
    generator = torch.Generator().manual_seed(0)
    t, h, w = extent
    floats = TORCH_DTYPES[dtype]
    latents = torch.randn(1, config.in_channels, t, 2 * h, 2 * w, generator=generator)
    keep = torch.arange(text_tokens)[None] < real_text
    sequence = torch.randn(1, text_tokens, config.caption_channels, generator=generator)
    text = TextFeatures(sequence, keep, torch.randn(1, config.pooled_projection_dim, generator=generator))
    return latents.to(device, floats), torch.tensor([0.5], device=device), text.to(device=device, dtype=floats)
