"""Selects the platform once, at start-up."""

import importlib.util

import torch

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms import variables
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.platforms.cuda import CudaPlatform
from mindspeed_mm.platforms.npu import NpuPlatform

PLATFORMS = ("cpu", "cuda", "npu")


def select(device: str = "auto", mindspeed: str = "auto", flash_attention: str = "torch") -> Platform:
    """The platform for `--device`; "auto" takes an NPU, else a GPU, else the CPU. It still needs `prepare()`."""
    if device != "auto" and device not in PLATFORMS:
        raise ConfigError(f"--device {device}: not one of auto, {', '.join(PLATFORMS)}")
    device = _find() if device == "auto" else device
    if device == "cuda":
        return CudaPlatform(flash_attention)
    if flash_attention != "torch":
        raise ConfigError(f"--flash-attention {flash_attention}: runs on CUDA; leave it out on --device {device}")
    return NpuPlatform(mindspeed) if device == "npu" else CpuPlatform()


def _find() -> str:
    if importlib.util.find_spec("torch_npu") is not None and variables.has_npu():
        return "npu"
    return "cuda" if torch.cuda.is_available() else "cpu"
