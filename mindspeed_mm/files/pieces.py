"""A tensor that lies in files in rectangular parts, and ranges of flattened elements as such parts.

A data rank owns a range of a parameter's flattened elements. Checkpoint formats know rectangles, so a range is stored as a few of
them: the rest of a first row, whole rows, the beginning of a last row.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files.mapped import MappedFiles


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of a tensor that is contiguous in it. start: its first element in the flattened tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Cuts flattened elements start..stop of a tensor into at most 2 * dimensions - 1 rectangles, in order."""
    if start >= stop:
        return
    if not shape:
        yield Box((), (), 0)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows
    if first > last:  # within one row
        yield from _in_row(shape, last, start, stop)
        return
    yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        inside = tuple(shape[1:])
        yield Box((first, *(0 for _ in inside)), (last - first, *inside), first * row)
    yield from _in_row(shape, last, last * row, stop)


def _in_row(shape: Sequence[int], number: int, start: int, stop: int) -> Iterator[Box]:
    begin = number * math.prod(shape[1:])
    for box in boxes(shape[1:], start - begin, stop - begin):
        yield Box((number, *box.offsets), (1, *box.sizes), begin + box.start)


class Unopened:
    """A part whose file is opened when its values are used: of a large checkpoint a rank needs few."""

    def __init__(self, shape: Sequence[int], open_part: Callable[[], Tensor]):
        self.shape = torch.Size(shape)
        self._open = open_part
        self._tensor: Tensor | None = None

    def tensor(self) -> Tensor:
        if self._tensor is None:
            self._tensor = self._open()
        return self._tensor


class Pieces:
    """A tensor, or a rectangle of one, whose values are read from its parts when they are asked for."""

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, parts: Sequence[tuple[Sequence[int], Tensor | Unopened]]
    ):
        """parts: (offsets, tensor), in any order, apart from each other. They may reach beyond `shape`, and offsets may be
        negative.
        """
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.parts = [(tuple(offsets), tensor) for offsets, tensor in parts]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return self.shape.numel()

    def element_size(self) -> int:
        return self.dtype.itemsize

    def narrow(self, dim: int, start: int, length: int) -> "Pieces":
        """The rectangle of `length` from `start` on along a dimension; reads nothing."""
        shape, parts = list(self.shape), []
        shape[dim] = length
        for offsets, part in self.parts:
            if offsets[dim] < start + length and offsets[dim] + part.shape[dim] > start:
                parts.append(([at - start * (axis == dim) for axis, at in enumerate(offsets)], part))
        return Pieces(shape, self.dtype, parts)

    def rows(self, rows: slice, files: MappedFiles | None = None) -> Tensor:
        """Some rows as a new tensor; all of a tensor without dimensions, as [1]. files: where the parts lie; they are checked
        before values are used, and released after.
        """
        start, stop, _ = rows.indices(self.shape[0]) if self.shape else (0, 1, 1)
        found = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        for offsets, part in self.parts:
            overlap = self._overlap(offsets, part.shape, start, stop) if self.shape else ((0,), ())
            if overlap is None:
                continue
            tensor = part if isinstance(part, Tensor) else part.tensor()
            if files is not None:
                files.check([tensor])
            there, here = overlap
            found[there].copy_(tensor[here])
            if files is not None:
                files.release(tensor[here])
        return found

    def _overlap(self, offsets: Sequence[int], sizes: Sequence[int], start: int, stop: int) -> tuple | None:
        """Where a part lies in rows start..stop, and which of its elements lie there; None if none do."""
        there, here = [], []
        for axis, (at, size, limit) in enumerate(zip(offsets, sizes, self.shape, strict=True)):
            low, high = (start, stop) if axis == 0 else (0, limit)
            begin, end = max(at, low), min(at + size, high)
            if begin >= end:
                return None
            there.append(slice(begin - low, end - low))
            here.append(slice(begin - at, end - at))
        return tuple(there), tuple(here)


def check_cover(
    origin: str, name: str, shape: Sequence[int], parts: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> None:
    """Raises CheckpointError unless the parts (offsets, sizes) lie apart within a tensor and are all of it."""

    def refuse(why: str):
        raise CheckpointError(f"{origin}: the parts of {name} {list(shape)} {why}")

    for offsets, sizes in parts:
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            refuse(f"have other dimensions: {list(offsets)}, {list(sizes)}")
        if any(at + size > limit for at, size, limit in zip(offsets, sizes, shape, strict=True)):
            refuse(f"are not the whole of it: one at {list(offsets)} reaches beyond it")
    if math.prod(shape) == 0:
        return
    if sum(math.prod(sizes) for _, sizes in parts) != math.prod(shape):
        refuse("overlap, or leave a hole: together they are not the whole of it")
    if not shape:
        return
    ordered = sorted((tuple(offsets), tuple(sizes)) for offsets, sizes in parts)
    open_parts: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for offsets, sizes in ordered:
        open_parts = [part for part in open_parts if part[0][0] + part[1][0] > offsets[0]]
        if any(_meet(part, (offsets, sizes)) for part in open_parts):
            refuse(f"overlap, or leave a hole: there are two at {list(offsets)}")
        open_parts.append((offsets, sizes))


def _meet(one: tuple[tuple[int, ...], tuple[int, ...]], other: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    """True if two rectangles have elements in common."""
    return all(
        a < b + wide and b < a + long for a, long, b, wide in zip(one[0], one[1], other[0], other[1], strict=True)
    )
