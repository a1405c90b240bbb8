"""All names of megatron-core (0.16 and 0.19) that this project uses; no other file imports them.

Its import warns about Transformer Engine and Apex, which we do not need; these warnings are silenced.
"""

import contextlib
import logging
import warnings
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
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.tensor_parallel.layers import (
        linear_with_frozen_weight,
        linear_with_grad_accumulation_and_async_allreduce,
        set_tensor_model_parallel_attributes,
    )
    from megatron.core.tensor_parallel.mappings import (
        all_to_all,
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
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
        input_size: int
        output_size_per_partition: int

        def __init__(self, in_features: int, out_features: int, **options: Any): ...
        def forward(self, *arguments: Any, **options: Any) -> Any: ...

    class RowParallelLinear(nn.Module):
        weight: nn.Parameter
        bias: nn.Parameter | None
        tp_group: dist.ProcessGroup
        sequence_parallel: bool
        input_size_per_partition: int
        output_size: int

        def __init__(self, in_features: int, out_features: int, **options: Any): ...
        def forward(self, *arguments: Any, **options: Any) -> Any: ...


logging.getLogger("megatron.core").setLevel(logging.WARNING)

__all__ = [
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "MegatronModule",
    "OptimizerConfig",
    "OptimizerParamScheduler",
    "RowParallelLinear",
    "TransformerConfig",
    "all_to_all",
    "copy_to_tensor_model_parallel_region",
    "gather_from_sequence_parallel_region",
    "ParamKey",
    "ParamPredicate",
    "get_megatron_optimizer",
    "get_standard_config_overrides",
    "linear_with_frozen_weight",
    "linear_with_grad_accumulation_and_async_allreduce",
    "parallel_state",
    "reduce_from_tensor_model_parallel_region",
    "reduce_scatter_to_sequence_parallel_region",
    "scatter_to_sequence_parallel_region",
    "set_tensor_model_parallel_attributes",
]
