"""Converts between tensor-parallel layouts: reads any part of a parameter from any number of shards, in chunks.

The caller passes how a parameter is split (`partition.partition_dims` reads it from the layers); this file knows no
names.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files.mapped import MappedFiles
from mindspeed_mm.files.pieces import Pieces

_log = logs.get(__name__)

# Size of one read and write: large enough for full speed, small beside any large parameter.
CHUNK_BYTES = 4 * 2**20

DimOf = Callable[[str], int | None]
Shards = Sequence[Mapping[str, Tensor | Pieces]]  # tensors by name, per TP rank


class Weights:
    """Whole parameters by name, readable in equal parts. The bytes stay in the files until they are read.

    shards: tensors by name, per tensor-parallel rank (one dict for a file of whole weights). dim_of: gives the
    dimension that is split over the shards. mapped: the files of the tensors, whose pages are released after reading.
    distilled: what the file says of the weights' distillation, as plain values; whoever writes the weights passes it on.
    """

    def __init__(
        self,
        shards: Shards,
        dim_of: DimOf,
        origin: str,
        mapped: MappedFiles | None = None,
        distilled: object = None,
    ):
        self.shards = shards
        self.distilled = distilled
        self.dim = dim_of
        self.origin = origin
        self.mapped = mapped
        self._different: dict[str, float] = {}
        for rank, shard in enumerate(shards):
            difference = shard.keys() ^ shards[0].keys()
            if difference:
                raise CheckpointError(
                    f"{origin}: TP rank {rank} differs from rank 0 in the names {some(sorted(difference))}"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self.shards[0])

    def __contains__(self, name: str) -> bool:
        return name in self.shards[0]

    def __len__(self) -> int:
        return len(self.shards[0])

    def dtype(self, name: str) -> torch.dtype:
        return self.shards[0][name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        shape: list[int] = list(self.shards[0][name].shape)
        dim = self.dim(name) if len(self.shards) > 1 else None
        if dim is not None:
            if dim >= len(shape):
                raise CheckpointError(f"{self.origin}: {name} {shape} has no dimension {dim} to be split over TP")
            shape[dim] = sum(shard[name].shape[dim] for shard in self.shards)
        for rank, shard in enumerate(self.shards):
            expected = [shard[name].shape[axis] if axis == dim else size for axis, size in enumerate(shape)]
            if list(shard[name].shape) != expected:
                raise CheckpointError(
                    f"{self.origin}: {name} is {list(shard[name].shape)} on TP rank {rank}, "
                    f"{list(self.shards[0][name].shape)} on rank 0"
                )
        return tuple(shape)

    def part_shape(self, name: str, count: int) -> tuple[int, ...]:
        """Shape of each of `count` equal parts; a parameter that is not split is whole in every part."""
        shape, dim = list(self.shape(name)), self.dim(name)
        if dim is not None:
            if shape[dim] % count:
                raise CheckpointError(f"{self.origin}: {name} {shape}: dimension {dim} does not divide by TP {count}")
            shape[dim] //= count
        return tuple(shape)

    def chunks(self, name: str, index: int = 0, count: int = 1) -> Iterator[Tensor]:
        """Yields part `index` of `count` as contiguous groups of rows, in order.

        A parameter that every shard holds is taken from the last shard, as in the original's converter; `report` names
        the shards that differ. Raises CheckpointError for damaged bytes and for values that are not finite.
        """
        parts = [shard[name] for shard in self.shards]
        if self.mapped is not None:
            self.mapped.check(
                part for part in parts if isinstance(part, Tensor)
            )  # others are checked when they are read
        for chunk in self._pieces(name, parts, index, count):
            self._check_values(name, chunk, chunk.dtype)
            yield chunk

    def _pieces(self, name: str, parts: list[Tensor | Pieces], index: int, count: int) -> Iterator[Tensor]:
        dim = self.dim(name) if count > 1 or len(parts) > 1 else None
        if dim is None:
            for rows in _row_slices(parts[-1]):
                if index == 0 and len(parts) > 1:
                    self._compare(name, [self._rows(part, rows) for part in parts])
                yield from self._joined([self._rows(parts[-1], rows)], 0)
            return
        size = self.part_shape(name, count)[dim]
        parts = _overlapping(parts, dim, index * size, (index + 1) * size)
        if dim == 0:
            for part in parts:
                for rows in _row_slices(part):
                    yield from self._joined([self._rows(part, rows)], 0)
        else:
            for rows in _row_slices(parts[0], sharers=len(parts)):
                yield from self._joined([self._rows(part, rows) for part in parts], dim)

    def part(self, name: str, index: int = 0, count: int = 1) -> Tensor:
        """One part as a new tensor."""
        whole = torch.empty(self.part_shape(name, count), dtype=self.dtype(name))
        self.copy_into(whole, name, index, count)
        return whole

    def copy_into(self, target: Tensor, name: str, index: int = 0, count: int = 1) -> None:
        """Fills a contiguous tensor of the part's shape, of any dtype and device."""
        flat, at = target.view(-1), 0
        if target.is_floating_point() and not self.dtype(name).is_floating_point:
            raise CheckpointError(
                f"{self.origin}: {name} is {self.dtype(name)}, quantized or another thing than weights"
            )
        for chunk in self.cast_chunks(name, target.dtype, index, count):
            flat[at : at + chunk.numel()].copy_(chunk.reshape(-1))
            at += chunk.numel()

    def copy_range(self, target: Tensor, name: str, start: int, index: int = 0, count: int = 1) -> None:
        """Fills a contiguous tensor with flattened elements `start`.. of a part; reads the rows that hold them alone."""
        part, flat = self._part(name, index, count), target.view(-1)
        stop, row = start + flat.numel(), max(1, part.numel() // max(1, part.shape[0] if part.ndim else 1))
        if start == stop:
            return
        first = start // row
        for rows in _row_slices(part.narrow(0, first, -(-stop // row) - first) if part.ndim else part):
            chunk = self._rows(part, slice(first + rows.start, min(first + rows.stop, -(-stop // row)))).reshape(-1)
            begin = (first + rows.start) * row  # of the chunk
            chunk = chunk[max(start - begin, 0) : stop - begin]
            self._check_values(name, chunk, chunk.dtype)
            at = max(begin, start) - start
            flat[at : at + chunk.numel()].copy_(chunk)

    def _part(self, name: str, index: int, count: int) -> Pieces:
        """One part, of which nothing is read yet."""
        dim, offset, parts = self.dim(name), 0, []
        for shard in self.shards if dim is not None else self.shards[-1:]:
            held = shard[name]
            inside = held.parts if isinstance(held, Pieces) else [((0,) * held.ndim, held)]
            parts += [
                ([at + offset * (axis == dim) for axis, at in enumerate(offsets)], tensor) for offsets, tensor in inside
            ]
            offset += held.shape[dim] if dim is not None else 0
        whole = Pieces(self.shape(name), self.dtype(name), parts)
        if dim is None or count == 1:
            return whole
        size = self.part_shape(name, count)[dim]
        return whole.narrow(dim, index * size, size)

    def cast_chunks(self, name: str, dtype: torch.dtype, index: int = 0, count: int = 1) -> Iterator[Tensor]:
        """`chunks` on the CPU in another dtype. Raises CheckpointError for a value outside of its range."""
        for chunk in self.chunks(name, index, count):
            cast = chunk.to("cpu", dtype)
            if dtype == torch.float16 != chunk.dtype:
                self._check_values(name, cast, dtype)
            yield cast

    def report(self) -> None:
        """Warns of parameters read so far whose copies differ between shards."""
        if self._different:
            worst = max(self._different.values())
            _log.warning(
                f"{self.origin}: TP ranks hold different values of {some(list(self._different))} (up to {worst:.2e}); "
                "the last rank's are taken"
            )
            self._different.clear()

    def _check_values(self, name: str, chunk: Tensor, dtype: torch.dtype) -> None:
        """Raises CheckpointError if a value is not finite. dtype: the dtype in which the check found it."""
        if chunk.numel() == 0 or not chunk.is_floating_point():
            return
        least, most = torch.aminmax(chunk)  # NaN if a value is NaN; ten times as fast as isfinite
        if not math.isfinite(least) or not math.isfinite(most):
            if dtype != self.dtype(name):
                raise CheckpointError(f"{self.origin}: {name} has values beyond 65504, the largest of fp16; use bf16")
            raise CheckpointError(
                f"{self.origin}: {name} has values that are not finite (NaN or infinite); the weights are damaged, or the "
                "run that wrote them had diverged: take an earlier checkpoint"
            )

    def _rows(self, part: Tensor | Pieces, rows: slice) -> Tensor:
        if isinstance(part, Pieces):
            return part.rows(rows, self.mapped)
        return part[rows] if part.ndim else part.reshape(1)

    def _joined(self, pieces: list[Tensor], dim: int) -> Iterator[Tensor]:
        yield (torch.cat(pieces, dim) if len(pieces) > 1 else pieces[0].contiguous())
        self._release(pieces)

    def _release(self, pieces: list[Tensor]) -> None:
        if self.mapped is not None:
            for piece in pieces:
                self.mapped.release(piece)

    def _compare(self, name: str, pieces: list[Tensor]) -> None:
        for piece in pieces[:-1]:
            if not torch.equal(piece, pieces[-1]):
                # Runs without --qk-layernorm of the original never exchanged the gradients of some.
                off = (piece.float() - pieces[-1].float()).abs().max().item()
                self._different[name] = max(off, self._different.get(name, 0.0))
        self._release(pieces[:-1])


def some(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _overlapping(parts: list[Tensor | Pieces], dim: int, start: int, stop: int) -> list[Tensor | Pieces]:
    """The range from start to stop of the parts, placed side by side along `dim`."""
    found, offset = [], 0
    for part in parts:
        size = part.shape[dim]
        begin, end = max(start - offset, 0), min(stop - offset, size)
        if begin < end:
            found.append(part.narrow(dim, begin, end - begin))
        offset += size
    return found


def _row_slices(tensor: Tensor | Pieces, sharers: int = 1) -> Iterator[slice]:
    """Row ranges of at most one chunk in total if `sharers` such tensors are read together."""
    rows = tensor.shape[0] if tensor.ndim else 1
    row_bytes = max(1, tensor.numel() // max(rows, 1) * tensor.element_size() * sharers)
    step = max(1, CHUNK_BYTES // row_bytes)
    return (slice(at, at + step) for at in range(0, rows, step))
