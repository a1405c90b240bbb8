"""NVIDIA GPUs with NCCL, as torch supports them."""

import torch

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms.base import Platform, connections_on_demand, ordered_launches
from mindspeed_mm.platforms.copies import Copies, CopiesBeside

# Dense bf16 and fp16 peaks from NVIDIA's data sheets, TFLOP/s, by a part of the device's name. More specific names
# first.
_PEAKS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "H800": 989,
    "H20": 148,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "A10": 125,
}
_FLOAT8_CAPABILITY = (8, 9)
_PACKAGES = {"FA3": "flash_attn_3, built from FlashAttention's folder hopper", "FA4": "flash-attn-4"}


class CudaPlatform(Platform):
    name = "cuda"
    backend = "cpu:gloo,cuda:nccl"  # gloo carries the optimizer's shards for checkpoints
    fused_adamw = True

    def __init__(self, flash_attention: str = "torch"):
        """flash_attention: "torch", or an implementation that torch knows: FA3 (2407.08608) or FA4."""
        self.flash_attention = flash_attention

    def prepare(self, allow_tf32: bool = False, allow_internal_format: bool = False) -> None:
        if not torch.cuda.is_available():
            raise ConfigError(
                "--device cuda: torch.cuda.is_available() is False; install a CUDA build of torch, or use --device cpu"
            )
        ordered_launches()
        connections_on_demand()
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        torch.backends.cudnn.allow_tf32 = allow_tf32
        if self.flash_attention != "torch":
            activate_flash_attention(self.flash_attention)

    def device(self, local_rank: int) -> torch.device:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"--nproc_per_node: process {local_rank} has no GPU, this node has {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)

    def check_float8(self, dtype: torch.dtype) -> None:
        capability = torch.cuda.get_device_capability()
        if capability < _FLOAT8_CAPABILITY:
            least, found = (".".join(map(str, version)) for version in (_FLOAT8_CAPABILITY, capability))
            raise ConfigError(
                f"--fp8-format needs a GPU of capability {least}; {torch.cuda.get_device_name()} has {found}"
            )
        if dtype != torch.bfloat16:  # torch's kernel with a scale for each row writes no other
            raise ConfigError(f"--fp8-format needs --bf16 on CUDA; the denoiser is {dtype}".replace("torch.", ""))

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def moment(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1000

    def peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated()

    def reset_peak_memory(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def total_memory(self) -> int:
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory

    def copies(self) -> Copies:
        return CopiesBeside(torch.cuda)

    def available_memory(self) -> int:
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()

    def release_memory(self) -> None:
        torch.cuda.empty_cache()

    def peak_tflops(self, dtype: torch.dtype) -> float | None:
        name = torch.cuda.get_device_name()
        if dtype not in (torch.bfloat16, torch.float16):
            return None
        return next((float(peak) for part, peak in _PEAKS.items() if part in name), None)

    def _activities(self, with_cpu: bool) -> list:
        device = [torch.profiler.ProfilerActivity.CUDA]
        return device + super()._activities(with_cpu) if with_cpu else device

    def rng_state(self) -> torch.Tensor | None:
        return torch.cuda.get_rng_state()

    def set_rng_state(self, state: torch.Tensor | None) -> None:
        if state is not None:
            torch.cuda.set_rng_state(state)


def activate_flash_attention(implementation: str) -> None:
    """Lets torch's attention call a FlashAttention that is installed beside torch."""
    from torch.nn import attention

    if implementation not in getattr(attention, "list_flash_attention_impls", list)():
        raise ConfigError(
            f"--flash-attention {implementation}: torch {torch.__version__} does not know it; install a newer one"
        )
    try:
        attention.activate_flash_attention_impl(implementation)
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"--flash-attention {implementation}: {error}; install {_PACKAGES[implementation]}, or leave the option out"
        ) from error
