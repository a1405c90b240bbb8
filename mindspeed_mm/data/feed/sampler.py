"""Order of samples: an endless stream; every data-parallel rank takes its share.

An epoch is a list of clips that depends on (seed, epoch, group size), never on the number of ranks. It consists of
groups of `group_size` clips of one shape: the global batch of one optimizer step. Clips are shuffled within their
shape and cut into groups, and the groups are shuffled. Clips that do not fill the last group of their shape are left
out of this epoch (`drop_last`; the next shuffle leaves out others), or the group is filled with the shape's first
clips.

A step takes the next world_size * micro_batch_size clips; rank r takes every world_size-th of them, starting at the
r-th. So all ranks of a step have one shape, and optimizer step k consists of the same clips at any number of ranks.
(The original cut groups of world_size * micro_batch_size: with gradient accumulation an optimizer step could mix
shapes, and its clips depended on the number of ranks. Without accumulation, and if every shape fills its groups, epoch
0 with seed 42 has the original's order.)

The position in the stream counts the samples taken by all ranks together. If the group size changes on a resume, the
clips that the running epoch has not used are regrouped, so that each is still used exactly once. Shapes that are too
rare for a group size (`common_shapes`) are left out here, so that a clip's place in the list is the same for all group
sizes.
"""

import collections
import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mindspeed_mm.data.lists.filters import common_shapes
from mindspeed_mm.data.lists.shapes import Shapes
from mindspeed_mm.errors import ConfigError, DataError

_LONG = 1_000_000  # samples, whose order is made in arrays of several MB


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """A place in the stream.

    consumed: samples taken from the epoch's order. earlier: (group_size, consumed) for each part of this epoch that
    was taken with another group size.
    """

    epoch: int = 0
    consumed: int = 0
    earlier: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One rank's clips in one micro-step, and the position after all ranks have taken theirs."""

    epoch: int
    indices: tuple[int, ...]
    after: Position


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """How data-parallel ranks divide the stream.

    group_size: samples of one optimizer step, over all ranks. micro_batch_size: samples that a rank takes at a time.
    Raises ConfigError if a group is no whole number of micro-batches on every rank.
    """

    group_size: int
    micro_batch_size: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        if self.group_size % self.step_size:
            raise ConfigError(
                f"global batch size {self.group_size} is not a multiple of {self.world_size} data-parallel ranks x micro "
                f"batch size {self.micro_batch_size}"
            )

    @property
    def step_size(self) -> int:
        """Samples of one micro-step, over all ranks."""
        return self.world_size * self.micro_batch_size


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """Rules of the order of samples.

    grouped: cut groups by shape, else from all samples. repeat: every epoch equals epoch 0 (for evaluation). drop_rare:
    leave out samples of rare shapes, grouped or not.
    """

    seed: int
    grouped: bool = True
    shuffle: bool = True
    drop_last: bool = True
    repeat: bool = False
    drop_rare: bool = False


def epoch_order(
    keys: Sequence[str] | None,
    members: Sequence[int] | np.ndarray,
    group_size: int,
    generator: torch.Generator | None = None,
    drop_last: bool = True,
) -> np.ndarray:
    """The clips `members` in the order of one epoch; each `group_size` in a row share one key.

    keys: shape of every clip, or None for one bucket of all. generator: None keeps the order of the list. Arrays of
    numbers, since a list of ten million Python numbers takes 360 MB.
    """
    members = np.asarray(members)
    groups = []
    for bucket in sorted([members] if keys is None else Shapes.of(keys).split(members), key=len, reverse=True):
        if generator is not None:
            bucket = bucket[torch.randperm(len(bucket), generator=generator).numpy()]
        groups.append(_cut(bucket, group_size, drop_last))
    cut = np.concatenate(groups) if groups else members.reshape(0, group_size)
    if generator is not None and keys is not None:
        cut = cut[torch.randperm(len(cut), generator=generator).numpy()]
    return cut.reshape(-1)


def _cut(bucket: np.ndarray, size: int, drop_last: bool) -> np.ndarray:
    """[groups, size]; without drop_last the last group is filled with the bucket's first clips."""
    whole = len(bucket) // size * size
    groups = bucket[:whole].reshape(-1, size)
    if drop_last or whole == len(bucket):
        return groups
    filled = np.resize(np.concatenate([bucket[whole:], bucket[: min(whole, size)]]), size)
    return np.concatenate([groups, filled[None]])


def _give_back() -> None:
    """Returns freed memory to the system: glibc keeps the last 64 MiB or so for this process."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class GroupedSampler:
    """Steps of one rank, from any position on."""

    def __init__(self, keys: Sequence[str], split: Split, order: Order):
        """keys: shape of each sample. Raises DataError if no shape fills a group."""
        self.split, self.order = split, order
        self.group_size, self.step_size = split.group_size, split.step_size
        self._shapes = Shapes.of(keys)
        self._counts = self._shapes.counts
        self._keys = self._shapes if order.grouped else None
        if not self.epoch_size:
            counts = self._buckets().most_common(1)
            raise DataError(
                f"no shape has the {self.group_size} clips of a global batch (the most frequent has "
                f"{counts[0][1] if counts else 0}); use a smaller --global-batch-size, more clips, or drop_last false"
            )

    @property
    def epoch_size(self) -> int:
        """Samples of a whole epoch, over all ranks."""
        counts = self._buckets().values()
        return (
            sum((n if self.order.drop_last else n + self.group_size - 1) // self.group_size for n in counts)
            * self.group_size
        )

    def shapes(self, group_size: int) -> dict[str, int]:
        """Shapes that a group size uses, with their counts."""
        return common_shapes(self._counts, group_size) if self.order.drop_rare else dict(self._counts)

    def members(self, group_size: int) -> np.ndarray:
        """Clips that a group size uses, ascending."""
        used = self._shapes.among(self.shapes(group_size))
        return np.flatnonzero(used).astype(np.int32 if len(used) < 2**31 else np.int64)

    @property
    def rules(self) -> dict[str, bool]:
        """Settings that determine the order, apart from the list, the seed and the group size."""
        return {"group_data": self._keys is not None, "shuffle": self.order.shuffle, "drop_last": self.order.drop_last}

    def left(self, position: Position) -> int:
        """Number of samples left in the epoch of a position."""
        return len(self._order(position)) - position.consumed

    def _buckets(self) -> collections.Counter:
        counts = self.shapes(self.group_size)
        return collections.Counter(counts if self._keys is not None else {"": sum(counts.values())})

    def steps(self, position: Position) -> Iterator[Step]:
        """Steps from `position` on, without end."""
        while True:
            order = self._order(position)
            for begin in range(position.consumed, len(order), self.step_size):
                taken = order[begin : begin + self.step_size]
                after = dataclasses.replace(position, consumed=begin + self.step_size)
                yield Step(position.epoch, tuple(taken[self.split.rank :: self.split.world_size].tolist()), after)
            position = Position(0 if self.order.repeat else position.epoch + 1)

    def _order(self, position: Position) -> np.ndarray:
        seen = np.zeros(len(self._shapes), dtype=bool)
        for group_size, consumed in position.earlier:
            seen[self._ordered(seen, group_size, position.epoch)[:consumed]] = True
        order = self._ordered(seen, self.group_size, position.epoch)
        if len(order) > _LONG:
            _give_back()
        return order

    def _ordered(self, seen: np.ndarray, group_size: int, epoch: int) -> np.ndarray:
        members = self.members(group_size)
        members = members[~seen[members]]
        # seed + epoch, as in torch's DistributedSampler; epoch 0 with seed 42 is the original's order
        generator = torch.Generator().manual_seed(self.order.seed + epoch) if self.order.shuffle else None
        return epoch_order(self._keys, members, group_size, generator, self.order.drop_last)

    def state(self, position: Position) -> dict:
        """The position as plain numbers, for a checkpoint; the same on every rank and valid for any number of ranks."""
        return {**dataclasses.asdict(position), "group_size": self.group_size}

    def position(self, state: dict) -> Position:
        """The position of a `state` that was saved with any number of ranks and any group size."""
        earlier = tuple((int(size), int(consumed)) for size, consumed in state["earlier"])
        epoch, consumed, group_size = int(state["epoch"]), int(state["consumed"]), int(state["group_size"])
        if group_size != self.group_size or consumed % self.step_size:
            return Position(epoch, 0, (*earlier, (group_size, consumed)))
        return Position(epoch, consumed, earlier)
