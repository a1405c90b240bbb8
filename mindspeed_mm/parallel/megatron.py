"""All names of megatron-core (0.16 and 0.19) that this project uses; no other file imports them.

Its import warns about Transformer Engine and Apex, which we do not need; these warnings are silenced.
"""

import contextlib
import inspect
import logging
import queue
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn


@contextlib.contextmanager
def _without_compiler():
    """torch.compile returns its argument while inside.

    megatron-core decorates fused functions with it, none of which we call; the first use of torch.compile imports the
    whole compiler, which takes longer than all other imports of megatron-core together.
    """
    compiler = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda function: function)
    try:
        yield
    finally:
        torch.compile = compiler


with warnings.catch_warnings(), _without_compiler():
    warnings.simplefilter("ignore")
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.tensor_parallel.layers import (
        linear_with_frozen_weight,
        linear_with_grad_accumulation_and_async_allreduce,
        set_tensor_model_parallel_attributes,
    )
    from megatron.core.tensor_parallel.mappings import (
        all_gather_last_dim_from_tensor_parallel_region,
        all_to_all,
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
        gather_from_tensor_model_parallel_region,
        reduce_from_tensor_model_parallel_region,
        reduce_scatter_to_sequence_parallel_region,
        scatter_to_sequence_parallel_region,
    )
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.module import MegatronModule

    if not TYPE_CHECKING:  # see below
        from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

if TYPE_CHECKING:
    # What `linear.py` uses of these layers: their own annotations would forbid its calling convention.

    class ColumnParallelLinear(nn.Module):
        weight: nn.Parameter
        bias: nn.Parameter | None
        tp_group: dist.ProcessGroup
        sequence_parallel: bool
        allreduce_dgrad: bool

        def __init__(self, in_features: int, out_features: int, **options: Any): ...
        def forward(self, *arguments: Any, **options: Any) -> Any: ...

    class RowParallelLinear(nn.Module):
        weight: nn.Parameter
        bias: nn.Parameter | None

        def __init__(self, in_features: int, out_features: int, **options: Any): ...
        def forward(self, *arguments: Any, **options: Any) -> Any: ...


logging.getLogger("megatron.core").setLevel(logging.WARNING)
# Its advice is the other package, see `begin_save`.
logging.getLogger("megatron.core.dist_checkpointing.strategies.torch").addFilter(
    lambda record: "async save is deprecated" not in record.getMessage()
)

__all__ = [
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "MegatronModule",
    "OptimizerConfig",
    "OptimizerParamScheduler",
    "RowParallelLinear",
    "ShardedTensor",
    "TransformerConfig",
    "all_gather_last_dim_from_tensor_parallel_region",
    "all_to_all",
    "begin_save",
    "copy_to_tensor_model_parallel_region",
    "dist_checkpointing",
    "gather_from_sequence_parallel_region",
    "gather_from_tensor_model_parallel_region",
    "get_megatron_optimizer",
    "linear_with_frozen_weight",
    "linear_with_grad_accumulation_and_async_allreduce",
    "parallel_state",
    "reduce_from_tensor_model_parallel_region",
    "reduce_scatter_to_sequence_parallel_region",
    "scatter_to_sequence_parallel_region",
    "set_tensor_model_parallel_attributes",
]


def begin_save(tensors: dict[str, Any], directory: str) -> Any:
    """Begins a save of dist_checkpointing, whose files a thread of this process writes. Collective.

    By default megatron-core starts a process of 400 MB that passes on the results of a writer process, and forks a
    process for each file. These processes would outlive a killed rank, and a signal to the whole group would end them.
    """
    filesystem_async._results_queue = queue.Queue()
    filesystem_async.FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(_write_by_threads)
    # From 0.17 on the default is the writer of nvidia-resiliency-ext, which is another package.
    has_choice = "async_strategy" in inspect.signature(dist_checkpointing.save).parameters
    choice: dict[str, Any] = {"async_strategy": "mcore"} if has_choice else {}
    return dist_checkpointing.save(tensors, directory, async_sharded_save=True, **choice)


def _write_by_threads(transform_list, use_msc, rank, write_buckets, global_results_queue) -> None:
    """Replaces megatron-core's method of this name by threads: writes a file for each bucket, puts all results into
    the queue.
    """
    done: Any = queue.Queue()  # its annotations ask for queues of processes
    unfinished: Any = queue.Queue()

    def write(number: int) -> None:
        unfinished.put(number)
        writer = filesystem_async.FileSystemWriterAsync
        writer.write_preloaded_data(
            transform_list, number, write_buckets[number], done, unfinished, use_fsync=True, use_msc=use_msc
        )

    with ThreadPoolExecutor(len(write_buckets)) as pool:
        list(pool.map(write, range(len(write_buckets))))
    found = dict(done.get() for _ in write_buckets)
    failures = [value for value in found.values() if isinstance(value, Exception)]
    global_results_queue.put(failures[0] if failures else found)
