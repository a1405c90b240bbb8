"""Shares the frozen encoders' work among the ranks of one sample (`enable_encoder_dp`).

TP and CP ranks train on the same micro-batches, so by default each rank decodes and encodes all of them. With sharing,
rank r of n encodes the r-th of the next n micro-batches (see `share` of the loader) and sends all its tensors to the
others. A round of n micro-batches costs each rank one encoding.
"""

import collections

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.hosts import Hosts
from mindspeed_mm.training.encoders import Encoded, FrozenEncoders
from mindspeed_mm.types import Batch


class SharedEncoders:
    """Replaces FrozenEncoders in a TrainStep whose loader yields each batch once per rank of a round."""

    def __init__(self, encoders: FrozenEncoders, parallel: ParallelContext, hosts: Hosts):
        self.encoders = encoders
        self._group = parallel.tensor_and_context
        self._hosts = hosts
        self._batch: Batch | None = None  # this rank's batch in this round
        self._round: collections.deque[Encoded] = collections.deque()

    def __call__(self, batch: Batch) -> Encoded:
        """Returns the next micro-batch of the round. The first call with a new batch encodes and exchanges it;
        collective.
        """
        if batch is not self._batch:
            self._batch = batch
            self._round = collections.deque(self._exchange(self.encoders(batch)))
        return self._round.popleft()

    def _exchange(self, mine: Encoded) -> list[Encoded]:
        """Micro-batches of all ranks in stream order. A round may mix shapes, at the border of two optimizer steps."""
        found = []
        # masks, which are on the host; of other tensors shapes and dtypes; and all that is not a tensor
        announced = mine.map(lambda tensor: tensor if tensor.dtype == torch.bool else tensor.to("meta"))
        everyone = self._hosts.gather_of_samples(announced)
        for rank, said in zip(self._hosts.sharers, everyone, strict=True):
            if rank == dist.get_rank():
                for tensor in mine.tensors():
                    if tensor.dtype != torch.bool:
                        self._broadcast(tensor.contiguous(), rank)
                found.append(mine)
            else:
                device = mine.latents.device
                found.append(said.map(lambda like, rank=rank, device=device: self._received(like, rank, device)))
        return found

    def _received(self, like: Tensor, rank: int, device: torch.device) -> Tensor:
        """A tensor of another rank, of the shape and dtype of `like`; a mask has come with the announcement."""
        if like.dtype == torch.bool:
            return like
        tensor = torch.empty(like.shape, dtype=like.dtype, device=device)
        self._broadcast(tensor, rank)
        return tensor

    def _broadcast(self, tensor: Tensor, rank: int) -> None:
        dist.broadcast(tensor, src=rank, group=self._group)
