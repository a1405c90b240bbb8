"""Ascend NPUs with HCCL. The only file that imports torch_npu or MindSpeed.

The order matters: `torch_npu`, then `transfer_to_npu` (so that megatron-core's `torch.cuda` means the NPU), then
MindSpeed's adaptor, all before `megatron.core`. MindSpeed reads sys.argv at its import and would inject our flags as
strings into Megatron's configs, so it gets an argv without them.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib import metadata

import torch

from mindspeed_mm import logs
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms.base import (
    Platform,
    connections_on_demand,
    cuda_type_names,
    ordered_launches,
    profile_window,
)
from mindspeed_mm.platforms.copies import Copies, CopiesBeside

_log = logs.get(__name__)
_MINDSPEED_PATCHES = "0.16."  # megatron-core of MindSpeed's branch core_r0.16.0, the one that was compared by name


class NpuPlatform(Platform):
    name = "npu"
    backend = "cpu:gloo,npu:hccl"  # gloo carries the optimizer's shards for checkpoints
    fused_adamw = True

    def __init__(self, mindspeed: str = "auto"):
        """mindspeed: "on" needs MindSpeed, "auto" uses it if it is installed, "off" never does."""
        self.mindspeed = mindspeed

    def prepare(self, allow_tf32: bool = False, allow_internal_format: bool = False) -> None:
        ordered_launches()
        connections_on_demand()
        try:
            torch_npu = importlib.import_module("torch_npu")
            importlib.import_module("torch_npu.contrib.transfer_to_npu")
        except ImportError as error:
            raise ConfigError(
                f"--device npu: torch_npu cannot be imported ({error}); install the torch_npu that pairs with "
                f"torch {torch.__version__} and source CANN's set_env.sh first"
            ) from None
        if not self._api.is_available():
            raise ConfigError("--device npu: no NPU is visible; source CANN's set_env.sh first and see npu-smi info")
        torch_npu.npu.config.allow_internal_format = allow_internal_format
        self._api.matmul.allow_hf32 = allow_tf32
        self._api.conv.allow_hf32 = allow_tf32
        self._import_mindspeed()

    @property
    def _api(self):
        """The module torch.npu, which is there once torch_npu is imported; torch itself does not declare it."""
        return getattr(torch, self.name)

    def _import_mindspeed(self) -> None:
        if self.mindspeed == "off":
            return
        if importlib.util.find_spec("mindspeed") is None:
            if self.mindspeed == "on":
                raise ConfigError("--mindspeed on: the package mindspeed is not installed (branch core_r0.16.0)")
            _log.info("MindSpeed is not installed; running on torch_npu alone")
            return
        if (fault := _other_megatron()) is not None:
            if self.mindspeed == "on":
                raise ConfigError(f"--mindspeed on: {fault}")
            _log.warning(f"MindSpeed is not used: {fault}")
            return
        ours, sys.argv = sys.argv, sys.argv[:1]
        try:
            importlib.import_module("mindspeed.megatron_adaptor")
        finally:
            sys.argv = ours

    def engine_scope(self):
        return cuda_type_names()  # otherwise "torch.npu.FloatTensor"; MindSpeed patches the same permanently

    def ema_adamw_kernel(self) -> Callable | None:
        """MindSpeed's kernel, if it is installed and its extension compiles (at the first call)."""
        if self.mindspeed == "off" or importlib.util.find_spec("mindspeed") is None or _other_megatron():
            return None
        try:
            kernel = importlib.import_module("mindspeed.ops.npu_apply_fused_ema_adamw").npu_apply_fused_ema_adamw
            tensors = [torch.zeros(1, device="npu") for _ in range(5)]
            count = torch.ones(1, dtype=torch.int64, device="npu")
            kernel(*tensors, count, 1e-3, 0.9, 0.9, 0.999, 1e-8, 1, True, 0.0)
        except Exception as error:
            if self.mindspeed == "on":
                raise ConfigError(f"--mindspeed on: its fused EMA-AdamW does not work here: {error}") from error
            _log.warning(f"MindSpeed's fused EMA-AdamW does not work here, the average is kept beside AdamW: {error}")
            return None
        return kernel

    def device(self, local_rank: int) -> torch.device:
        if local_rank >= self._api.device_count():
            raise ConfigError(
                f"--nproc_per_node: process {local_rank} has no NPU, this node has {self._api.device_count()}"
            )
        self._api.set_device(local_rank)
        return torch.device("npu", local_rank)

    def synchronize(self) -> None:
        self._api.synchronize()

    def moment(self):
        event = self._api.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin, end) -> float:
        return begin.elapsed_time(end) / 1000

    def peak_memory(self) -> int:
        return self._api.max_memory_allocated()

    def reset_peak_memory(self) -> None:
        self._api.reset_peak_memory_stats()

    def total_memory(self) -> int:
        return self._api.get_device_properties(self._api.current_device()).total_memory

    def copies(self) -> Copies:
        return CopiesBeside(self._api)

    def available_memory(self) -> int:
        return self._api.mem_get_info()[0] + self._api.memory_reserved()

    def release_memory(self) -> None:
        self._api.empty_cache()

    def profiler(self, settings):
        profiler = importlib.import_module("torch_npu.profiler")

        level = {"level0": "Level0", "level1": "Level1", "level2": "Level2"}[settings.level]
        experimental = profiler._ExperimentalConfig(
            aic_metrics=getattr(profiler.AiCMetrics, settings.aic_metrics_type),
            profiler_level=getattr(profiler.ProfilerLevel, level),
            data_simplification=settings.data_simplification,
        )
        activities = [profiler.ProfilerActivity.NPU]
        return profiler.profile(
            activities=[*activities, profiler.ProfilerActivity.CPU] if settings.with_cpu else activities,
            schedule=profiler.schedule(**profile_window(settings)),
            on_trace_ready=profiler.tensorboard_trace_handler(settings.save_path),
            record_shapes=settings.record_shapes,
            profile_memory=settings.with_memory,
            with_stack=settings.with_stack,
            experimental_config=experimental,
        )

    def dynamic_profiler(self, config_path: str):
        return _DynamicProfiler(importlib.import_module("torch_npu.profiler.dynamic_profile"), config_path)

    def rng_state(self) -> torch.Tensor | None:
        return self._api.get_rng_state()

    def set_rng_state(self, state: torch.Tensor | None) -> None:
        if state is not None:
            self._api.set_rng_state(state)


class _DynamicProfiler:
    """torch_npu's dynamic_profile module with the methods of a profiler."""

    def __init__(self, module, config_path: str):
        self._module = module
        self._config_path = config_path

    def start(self) -> None:
        self._module.init(self._config_path)

    def step(self) -> None:
        self._module.step()

    def stop(self) -> None:
        """Does nothing: the file stops it."""


def _other_megatron() -> str | None:
    """Why MindSpeed cannot patch the installed megatron-core, or None."""
    found = metadata.version("megatron-core")
    if found.startswith(_MINDSPEED_PATCHES):
        return None
    return (
        f"its branch core_r0.16.0 patches megatron-core {_MINDSPEED_PATCHES}x, and {found} is installed; "
        "pip install megatron-core==0.16.1 (Python 3.12 takes it, too)"
    )
