"""Which part of a run's tensors each rank writes: its own shards, and an equal part of what several ranks hold.

Nothing is exchanged: every rank finds its part by itself, and all parts together are every tensor once.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from mindspeed_mm.files.pieces import boxes
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.engine import MainShard
from mindspeed_mm.parallel.partition import full_shape


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of a stored tensor. shape: of the whole tensor. tensor: its values, on any device."""

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """Flattened elements start..start + values.numel() of this TP rank's part of a tensor, whose shape is `shape`."""

    name: str
    shape: tuple[int, ...]
    start: int
    values: Tensor


class Shares:
    """The parts of this rank, for a network whose parameters are split over TP along `dims`."""

    def __init__(self, dims: Mapping[str, int | None], parallel: ParallelContext):
        self.dims = dims
        self.parallel = parallel

    def of_parameters(self, prefix: str, values: Mapping[str, Tensor]) -> list[Part]:
        """Parts of tensors that every data rank holds. values: this TP rank's, by name; stored as prefix.name."""
        held = [Held(name, tuple(value.shape), 0, value) for name, value in values.items()]
        return self._parts(prefix, held, shared_by_data=True)

    def of_shards(self, prefix: str, shards: Iterable[MainShard], values: Iterable[Tensor], same: bool) -> list[Part]:
        """Parts of tensors of which this rank holds `shards`. same: every data rank holds the same ones."""
        held = [Held(one.name, tuple(one.shape), one.start, value) for one, value in zip(shards, values, strict=True)]
        return self._parts(prefix, held, shared_by_data=same)

    def _parts(self, prefix: str, held: list[Held], shared_by_data: bool) -> list[Part]:
        group, tensor = self.parallel.data_and_context, self.parallel.tensor
        rank, count = (group.rank(), group.size()) if shared_by_data else (0, 1)
        split = [one for one in held if self.dims[one.name] is not None]
        whole = [one for one in held if self.dims[one.name] is None]
        mine = shared(split, rank, count) + shared(whole, rank * tensor.size() + tensor.rank(), count * tensor.size())
        return [part for one in mine for part in self._boxes(prefix, one)]

    def _boxes(self, prefix: str, held: Held) -> Iterable[Part]:
        dim, flat = self.dims[held.name], held.values.detach().reshape(-1)
        for box in boxes(held.shape, held.start, held.start + flat.numel()):
            shift = 0 if dim is None else held.shape[dim] * self.parallel.tensor_rank
            offsets = tuple(at + shift * (axis == dim) for axis, at in enumerate(box.offsets))
            begin = box.start - held.start
            values = flat[begin : begin + box.numel].view(box.sizes)
            whole = full_shape(held.shape, dim, self.parallel.tensor_size)
            yield Part(f"{prefix}.{held.name}", whole, offsets, values)


def shared(held: list[Held], rank: int, count: int) -> list[Held]:
    """Part `rank` of `count` equal parts of all values in a row."""
    total = sum(one.values.numel() for one in held)
    first, last = total * rank // count, total * (rank + 1) // count
    found, at = [], 0
    for one in held:
        size = one.values.numel()
        begin, end = max(first - at, 0), min(last - at, size)
        if begin < end:
            values = one.values.detach().reshape(-1)[begin:end]
            found.append(Held(one.name, one.shape, one.start + begin, values))
        at += size
    return found


def copies(parts: list[Part], copy: Callable[[Tensor], Tensor]) -> list[Part]:
    """The parts with copies of their values, which stay as they are while training goes on."""
    return [dataclasses.replace(part, tensor=copy(part.tensor)) for part in parts]
