"""Selects the platform once, at start-up."""

import importlib.util

import torch

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms import variables
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.platforms.cuda import CudaPlatform
from mindspeed_mm.platforms.npu import NpuPlatform

PLATFORMS = {"cpu": lambda mindspeed: CpuPlatform(), "cuda": lambda mindspeed: CudaPlatform(), "npu": NpuPlatform}


def select(device: str = "auto", mindspeed: str = "auto") -> Platform:
    """The platform for `--device`; "auto" takes an NPU, else a GPU, else the CPU. It still needs `prepare()`."""
    if device != "auto" and device not in PLATFORMS:
        raise ConfigError(f"--device {device}: not one of auto, {', '.join(PLATFORMS)}")
    return PLATFORMS[_find() if device == "auto" else device](mindspeed)


def _find() -> str:
    if importlib.util.find_spec("torch_npu") is not None and variables.has_npu():
        return "npu"
    return "cuda" if torch.cuda.is_available() else "cpu"
