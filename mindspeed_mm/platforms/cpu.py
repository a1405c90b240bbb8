"""Plain CPU with gloo, and the adaptor that megatron-core needs there.

megatron-core asks for `torch.cuda` in a few places even where no tensor has to be on a GPU. This file answers, as
`torch_npu.contrib.transfer_to_npu` does for Ascend:
- for good, from `prepare()` on: `torch.cuda.current_device()` is the CPU, RNG states are the CPU's, `.cuda()` and
  `synchronize()` do nothing;
- inside `engine_scope()`, around the optimizer and the gradient buffers only: `device="cuda"` means the CPU, and
  `Tensor.type()` says `torch.cuda.FloatTensor`, which Megatron compares as strings.
Nothing else in the package patches anything.
"""

import contextlib
import os
import resource
import sys
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from mindspeed_mm.platforms.base import Platform, connections_on_demand, cuda_type_names, ordered_launches

_CPU = torch.device("cpu")


class CpuPlatform(Platform):
    name = "cpu"
    backend = "gloo"
    shares_memory = True
    fused_adamw = True

    def prepare(self, allow_tf32: bool = False, allow_internal_format: bool = False) -> None:
        ordered_launches()
        connections_on_demand()
        _stand_in_for_cuda()

    def device(self, local_rank: int) -> torch.device:
        return _CPU

    @contextlib.contextmanager
    def engine_scope(self):
        with cuda_type_names(), _CudaMeansCpu():
            yield

    def check_float8(self, dtype: torch.dtype) -> None:
        """torch has these products for a CPU, too: slow ones, to try."""

    def peak_memory(self) -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux

    def reset_peak_memory(self) -> None:
        with contextlib.suppress(OSError):  # Linux only: 5 lowers the high-water mark to what is resident now (proc(5))
            Path("/proc/self/clear_refs").write_text("5")

    def total_memory(self) -> int:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # the ranks share the host
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks


class _CudaMeansCpu(TorchFunctionMode):
    """Rewrites the keyword argument device="cuda" of torch functions."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs = {**kwargs, "device": _CPU}
        return func(*args, **kwargs)


def _stand_in_for_cuda() -> None:
    def rng_state(device=None):
        return torch.get_rng_state()

    def itself(self, *args, **kwargs):
        return self

    stand_ins = {
        "current_device": lambda: _CPU,
        "current_stream": lambda device=None: torch.cpu.current_stream(),  # asked for by megatron-core 0.19
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "manual_seed": torch.default_generator.manual_seed,
        "get_rng_state": rng_state,
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    }
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
    for owner, name, stand_in in (
        (torch.cuda.random, "get_rng_state", rng_state),
        (torch.Tensor, "cuda", itself),
        (torch.nn.Module, "cuda", itself),
    ):
        setattr(owner, name, stand_in)
