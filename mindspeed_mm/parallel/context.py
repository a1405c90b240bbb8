"""Process groups as a value that is passed to layers, never looked up."""

import dataclasses
import datetime
import os
import socket
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mindspeed_mm.parallel.megatron import TransformerConfig, parallel_state
from mindspeed_mm.parallel.pulse import Pulse
from mindspeed_mm.types import Drops


@dataclasses.dataclass(frozen=True, slots=True)
class Seat:
    """Place of this process among the ranks. store: where they meet."""

    store: dist.Store
    rank: int
    world_size: int


def joined(group: dist.ProcessGroup | int | None) -> dist.ProcessGroup:
    """A group that this process is in; torch's and Megatron's annotations leave open whether it is."""
    assert group is not None and not isinstance(group, int)
    return group


@dataclasses.dataclass(frozen=True)
class ParallelContext:
    """The groups of this process.

    tensor: ranks that share every layer (TP). context: ranks that share every sequence (Ulysses CP).
    tensor_and_context: ranks that share every sample. data: ranks with other samples (DP). data_and_context: ranks
    over which gradients are averaged. With `sequence_parallel`, activations between the tensor-parallel layers are
    split along the sequence too (2205.05198).

    guidance: in sampling, the pair of ranks that share the two halves of a sample's guidance; None if each rank
    computes both. Both ranks of a pair have the same samples, so `data` then holds the ranks of one half.
    """

    tensor: dist.ProcessGroup
    context: dist.ProcessGroup
    tensor_and_context: dist.ProcessGroup
    data: dist.ProcessGroup
    data_and_context: dist.ProcessGroup
    everyone: dist.ProcessGroup  # all ranks, over the network of the hosts (gloo)
    store: dist.Store  # key-value store of all ranks, for exchanges that must not be collective
    pulse: Pulse  # progress of this rank and of all ranks
    sequence_parallel: bool = False
    guidance: dist.ProcessGroup | None = None

    @classmethod
    def start(
        cls,
        backend: str = "gloo",
        tensor_size: int = 1,
        context_size: int = 1,
        sequence_parallel: bool = False,
        timeout_minutes: float = 10,
        seat: Seat | None = None,
        guidance_parallel: bool = False,
        share_memory: bool = False,
    ) -> "ParallelContext":
        """Starts the process group (unless one is running) and Megatron's groups in it; collective over all ranks.

        seat: default torchrun's, from the environment. share_memory: ranks of one machine exchange CPU tensors of layers
        and gradients through memory (`same_host.py`).
        """
        if not dist.is_initialized():
            store, rank, world_size = (None, -1, -1) if seat is None else (seat.store, seat.rank, seat.world_size)
            timeout = datetime.timedelta(minutes=timeout_minutes)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor_size,
            context_parallel_size=context_size,
            create_gloo_process_groups=False,  # the groups themselves also carry host tensors
            distributed_timeout_minutes=max(1, round(timeout_minutes)),
        )
        context = cls.current(sequence_parallel)
        context = context._in_pairs() if guidance_parallel else context
        return context._in_memory(datetime.timedelta(minutes=timeout_minutes)) if share_memory else context

    @classmethod
    def current(cls, sequence_parallel: bool = False) -> "ParallelContext":
        """The running groups; without any, starts one rank on an in-process store."""
        if not parallel_state.model_parallel_is_initialized():
            if dist.is_initialized():
                return cls.start()
            return cls.start(seat=Seat(dist.HashStore(), rank=0, world_size=1))
        store = dist.PrefixStore("mindspeed_mm", dist.distributed_c10d._get_default_store())
        return cls(
            tensor=joined(parallel_state.get_tensor_model_parallel_group()),
            context=joined(parallel_state.get_context_parallel_group()),
            tensor_and_context=joined(parallel_state.get_tensor_and_context_parallel_group()),
            data=joined(parallel_state.get_data_parallel_group()),
            data_and_context=joined(parallel_state.get_data_parallel_group(with_context_parallel=True)),
            everyone=joined(dist.group.WORLD),
            store=store,
            pulse=Pulse(store, dist.get_rank(), dist.get_world_size()),
            sequence_parallel=sequence_parallel and parallel_state.get_tensor_model_parallel_world_size() > 1,
        )

    def _in_pairs(self) -> "ParallelContext":
        """Pairs data-parallel ranks 2i and 2i+1 for guidance; collective over all ranks."""
        mine = dist.get_process_group_ranks(self.data)
        if len(mine) % 2:
            raise ValueError(f"{len(mine)} data-parallel ranks cannot be paired for guidance; need an even number")
        everyones: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, mine)
        groups = sorted({tuple(ranks) for ranks in everyones})
        pairs = [list(ranks[first : first + 2]) for ranks in groups for first in range(0, len(ranks), 2)]
        halves = [list(ranks[half::2]) for ranks in groups for half in (0, 1)]
        guidance, _ = dist.new_subgroups_by_enumeration(pairs)
        data, _ = dist.new_subgroups_by_enumeration(halves)
        return dataclasses.replace(self, guidance=guidance, data=data)

    def _in_memory(self, timeout: datetime.timedelta) -> "ParallelContext":
        """With groups of layers and of gradients that use shared memory; collective over all ranks."""
        from mindspeed_mm.parallel.same_host import through_memory

        hosts: list = [None] * self.world_size
        dist.all_gather_object(hosts, socket.gethostname())
        spins = hosts.count(socket.gethostname()) <= _cores()
        names = ("tensor", "context", "data_and_context")
        return dataclasses.replace(
            self, **{name: through_memory(getattr(self, name), timeout, spins) for name in names}
        )

    def stop(self) -> None:
        """Leaves all groups."""
        parallel_state.destroy_model_parallel()
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def tensor_size(self) -> int:
        return self.tensor.size()

    @property
    def tensor_rank(self) -> int:
        return self.tensor.rank()

    @property
    def context_size(self) -> int:
        return self.context.size()

    @property
    def context_rank(self) -> int:
        return self.context.rank()

    @property
    def data_size(self) -> int:
        return self.data.size()

    @property
    def data_rank(self) -> int:
        return self.data.rank()

    @property
    def guidance_size(self) -> int:
        return 1 if self.guidance is None else self.guidance.size()

    @property
    def guidance_rank(self) -> int:
        return 0 if self.guidance is None else self.guidance.rank()

    @property
    def sample_size(self) -> int:
        """Number of ranks that compute a sample together."""
        return self.tensor_size * self.context_size * self.guidance_size

    @property
    def rank(self) -> int:
        """Rank of this process among all processes."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """Number of all processes: TP x CP x DP."""
        return dist.get_world_size()

    @property
    def is_first(self) -> bool:
        """True on the single rank that writes logs and shared files."""
        return self.rank == 0

    @property
    def is_first_of_sample(self) -> bool:
        """True on one of the ranks that compute a sample together."""
        return self.tensor_rank == self.context_rank == self.guidance_rank == 0

    # The layers and moves of `Layout`. Their files import this one, so they are imported on use.

    def column(self, in_features: int, out_features: int, *, bias: bool) -> nn.Module:
        from mindspeed_mm.parallel.linear import ColumnLinear

        return ColumnLinear(in_features, out_features, self, bias=bias)

    def row(self, in_features: int, out_features: int, *, bias: bool) -> nn.Module:
        from mindspeed_mm.parallel.linear import RowLinear

        return RowLinear(in_features, out_features, self, bias=bias)

    def condition(self, in_features: int, out_features: int) -> nn.Module:
        from mindspeed_mm.parallel.linear import ConditionLinear

        return ConditionLinear(in_features, out_features, self)

    def shared(self, condition: Tensor) -> Tensor:
        from mindspeed_mm.parallel.collectives import shared

        return shared(condition, self)

    def together(self, x: Tensor, *layers: Any, drops: Drops | None = None) -> tuple[Tensor, ...]:
        from mindspeed_mm.parallel.linear import together

        return together(x, *layers, drops=drops)

    def split_heads(self, x: Tensor) -> Tensor:
        from mindspeed_mm.parallel.collectives import split_heads

        return split_heads(x, self)

    def join_heads(self, x: Tensor) -> Tensor:
        from mindspeed_mm.parallel.collectives import join_heads

        return join_heads(x, self)

    def config(self, *, split_sequence: bool | None = None) -> TransformerConfig:
        """The config object that megatron-core's layers and wrappers need.

        split_sequence: True if a layer's input is split along the sequence; default: `sequence_parallel`. Layer counts
        and widths are placeholders, which no layer of ours reads.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about its own defaults
            return TransformerConfig(
                num_layers=1,
                hidden_size=self.tensor_size * self.context_size,
                num_attention_heads=self.tensor_size * self.context_size,
                tensor_model_parallel_size=self.tensor_size,
                context_parallel_size=self.context_size,
                sequence_parallel=self.sequence_parallel if split_sequence is None else split_sequence,
                # Weights are created uninitialised, on the current torch device; `init_weights` or a file fills them.
                use_cpu_initialization=True,
                perform_initialization=False,
                gradient_accumulation_fusion=False,
                params_dtype=torch.float32,
            )


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
