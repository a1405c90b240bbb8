"""Weights of the full v1.5 that a training step reads before --overlap-param-gather has gathered their bucket.

    python benchmarks/early_reads.py

One rank of each layout runs a forward pass on tensors without storage; its buckets have the sizes of a real run. Each
operation's weights are looked up in their bucket. "by layer" uses Megatron's hooks, "by unit" those of
`parallel/gathering.py`.
"""

import argparse
import bisect
from pathlib import Path

import torch
import torch.distributed as dist
from common import table
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel import partition
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.gathering import Gathering
from mindspeed_mm.parallel.megatron import DistributedDataParallel, DistributedDataParallelConfig
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.schema import build, read_json
from mindspeed_mm.types import TextFeatures

_MODEL = Path(__file__).resolve().parents[1] / "examples" / "opensoraplan1.5" / "model_opensoraplan1_5.json"
LAYOUTS = ((8, 2), (4, 16), (8, 64))  # TP, DP


class Reads(TorchDispatchMode):
    """Collects the parameters that an operation reads while their bucket is not there."""

    def __init__(self, ddp: DistributedDataParallel):
        super().__init__()
        self.early: set[torch.nn.Parameter] = set()
        self.read: set[torch.nn.Parameter] = set()
        self._groups = ddp.param_to_bucket_group
        self._by_storage: dict[int, tuple[list[int], list[torch.nn.Parameter]]] = {}
        for buffer in ddp.buffers:
            parameters = sorted(buffer.params, key=lambda parameter: parameter.data.storage_offset())
            starts = [parameter.data.storage_offset() for parameter in parameters]
            self._by_storage[buffer.param_data.untyped_storage()._cdata] = starts, parameters

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        views = {x.untyped_storage()._cdata for x in tree_leaves(result) if isinstance(x, torch.Tensor)}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in views:
                self._note(x)
        return result

    def _note(self, x: torch.Tensor) -> None:
        starts, parameters = self._by_storage.get(x.untyped_storage()._cdata, ([], []))
        if starts:
            parameter = parameters[bisect.bisect_right(starts, x.storage_offset()) - 1]
            group = self._groups[parameter]
            self.read.add(parameter)
            if not group.param_gather_dispatched or group.param_gather_handle is not None:
                self.early.add(parameter)


class _UnderWay:
    def wait(self) -> None:
        """There is nothing to wait for."""


def _start(group, force_sync: bool = False) -> None:
    """Megatron's `start_param_sync` of a group of buckets, without a collective."""
    group.param_gather_handle, group.param_gather_dispatched = _UnderWay(), True


def reads(config: SparseUMMDiTConfig, tensor: int, data: int, of_units: bool) -> tuple[Reads, int]:
    """Reads of one rank of the layout in its first forward pass, and the number of its buckets."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=tensor * data)
    parallel = ParallelContext.start(backend="fake", tensor_size=tensor, sequence_parallel=True)
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=True, overlap_param_gather=True, use_distributed_optimizer=True
    )
    with torch.device("meta"), CpuPlatform().engine_scope():
        network = build_denoiser(config, parallel, dtype="bf16", seed=None).train()
        partition.mark(network, network.partial_gradients())
        ddp = DistributedDataParallel(parallel.config(), settings, network)
        latents = torch.zeros(1, config.in_channels, 4, 16, 16)  # no Skiparse pattern pads them
        features = torch.zeros(1, 16, config.caption_channels), torch.zeros(1, config.pooled_projection_dim)
        sigma = torch.zeros(1)
    if of_units:
        Gathering(ddp, network.units())
    for group in ddp.bucket_groups:
        group.start_param_sync = _start.__get__(group)
    text = TextFeatures(features[0], torch.ones(1, 16, dtype=torch.bool), features[1])  # real tokens decide shapes
    watch = Reads(ddp)
    with watch:
        ddp(latents, sigma, text)
    parallel.stop()
    return watch, len(ddp.bucket_groups)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    CpuPlatform().prepare()
    torch.cuda.current_device = lambda: torch.device("meta")  # where Megatron puts its buffers
    config = build(TrainModelConfig, read_json(_MODEL)).predictor
    rows = []
    for tensor, data in LAYOUTS:
        for name, of_units in (("by layer", False), ("by unit", True)):
            found, buckets = reads(config, tensor, data, of_units)
            early = sum(parameter.numel() for parameter in found.early)
            rows.append([f"TP {tensor} x DP {data}", name, buckets, len(found.read), len(found.early), f"{early:,}"])
    print(table(["layout", "hooks", "buckets", "parameters read", "too early", "numbers in them"], rows))


if __name__ == "__main__":
    main()
