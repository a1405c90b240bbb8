"""Shares the frozen encoders' work among the ranks of one sample (`enable_encoder_dp`).

TP and CP ranks train on the same micro-batches, so by default each rank decodes and encodes all of them. With sharing,
rank r of n encodes the r-th of the next n micro-batches (see `share` of the loader) and sends latents and text
features to the others. A round of n micro-batches costs each rank one encoding.
"""

import collections
import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.hosts import Hosts
from mindspeed_mm.training.encoders import Encoded, FrozenEncoders
from mindspeed_mm.types import Batch, TextFeatures


@dataclasses.dataclass(frozen=True, slots=True)
class _Announced:
    """Header of a micro-batch, sent before its tensors: shapes, dtypes and values that are not tensors."""

    tensors: tuple[tuple[torch.Size, torch.dtype], ...]
    addresses: tuple[tuple[int, int], ...]
    paths: tuple[str, ...]


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
        tensors = _tensors(mine)
        announced = _Announced(tuple((t.shape, t.dtype) for t in tensors), mine.addresses, mine.paths)
        found = []
        everyone = self._hosts.gather_of_samples(announced)
        for rank, said in zip(self._hosts.sharers, everyone, strict=True):
            own = rank == dist.get_rank()
            received = tensors if own else [_empty(*kind, mine.latents.device) for kind in said.tensors]
            for tensor in received:
                dist.broadcast(tensor, src=rank, group=self._group)
            found.append(mine if own else _encoded(received, said))
        return found


def _empty(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def _tensors(sample: Encoded) -> list[Tensor]:
    """Tensors in the form that is sent: bools become bytes, since some backends send no bools."""
    text = sample.text
    parts = (sample.latents, text.sequence, text.keep.to(torch.uint8), text.pooled, sample.keep.to(torch.uint8))
    return [part.contiguous() for part in parts]


def _encoded(tensors: list[Tensor], said: _Announced) -> Encoded:
    latents, sequence, text_keep, pooled, keep = tensors
    return Encoded(latents, TextFeatures(sequence, text_keep.bool(), pooled), keep.bool(), said.addresses, said.paths)
