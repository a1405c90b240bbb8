"""Counts the collectives that a rank issues, by kind, group and bytes, whatever the backend."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# torch's operator -> name of the collective
KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "alltoall_": "all-to-all",
    "alltoall_base_": "all-to-all",
    "broadcast_": "broadcast",
    "barrier": "barrier",
    "gather_": "gather",
    "scatter_": "scatter",
    "send": "send",
    "recv_": "receive",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """Kind, the group's name, and the size of the larger buffer: a gather's result, a scatter's input."""

    kind: str
    group: str
    bytes: int


class CollectiveCounter(TorchDispatchMode):
    """Counts collectives inside; `seen` says how often each was issued."""

    def __init__(self, groups: Mapping[str, dist.ProcessGroup]):
        """groups: by the names to report. Of groups with the same ranks the first counts; others are "others"."""
        super().__init__()
        self.seen: collections.Counter[Seen] = collections.Counter()
        self._names: dict[tuple[int, ...], str] = {}
        for name, group in groups.items():
            self._names.setdefault(tuple(dist.get_process_group_ranks(group)), name)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            kind = KINDS.get(func._opname, func._opname)
            tensors = [[x for x in tree_leaves(argument) if isinstance(x, torch.Tensor)] for argument in args]
            size = max((sum(x.nbytes for x in some) for some in tensors), default=0)
            self.seen[Seen(kind, self._group((args, kwargs)), size)] += 1
        return func(*args, **(kwargs or {}))

    def _group(self, arguments: Any) -> str:
        for value in tree_leaves(arguments):
            if isinstance(value, torch.ScriptObject):
                try:
                    group = dist.ProcessGroup.unbox(value)
                except (RuntimeError, TypeError):  # a reduce operation
                    continue
                return self._names.get(tuple(dist.get_process_group_ranks(group)), "others")
        return "others"
