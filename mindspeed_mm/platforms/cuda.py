"""NVIDIA GPUs with NCCL: what torch offers natively."""

import torch

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms.base import Platform, ordered_launches


class CudaPlatform(Platform):
    name = "cuda"
    backend = "cpu:gloo,cuda:nccl"  # gloo carries the optimizer's shards on their way to a checkpoint

    def prepare(self, allow_tf32: bool = False, allow_internal_format: bool = False) -> None:
        if not torch.cuda.is_available():
            raise ConfigError(
                "--device cuda: torch.cuda.is_available() is False; install a CUDA build of torch, or use --device cpu"
            )
        ordered_launches()
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        torch.backends.cudnn.allow_tf32 = allow_tf32

    def device(self, local_rank: int) -> torch.device:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"--nproc_per_node: process {local_rank} has no GPU, this node has {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated()

    def reset_peak_memory(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def total_memory(self) -> int:
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory

    def release_memory(self) -> None:
        torch.cuda.empty_cache()

    def rng_state(self) -> torch.Tensor | None:
        return torch.cuda.get_rng_state()

    def set_rng_state(self, state: torch.Tensor | None) -> None:
        if state is not None:
            torch.cuda.set_rng_state(state)
