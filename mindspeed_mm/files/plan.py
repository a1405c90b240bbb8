"""Plan of a conversion: which file holds which part of which parameter. It can be printed before any writing."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.types import TORCH_DTYPES


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A tensor of an output file: part `index` of `count` of parameter `name` in the source's `group`."""

    group: str
    name: str
    index: int
    count: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True)
class OutputFile:
    """An output file: `content` has a `Piece` in place of each tensor.

    A `.pt` file may hold nested dicts and plain values, a `.safetensors` file one dict of pieces, and texts as metadata.
    """

    path: Path
    content: dict
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def pieces(self) -> list[Piece]:
        """Pieces in the order of the content."""
        return list(_pieces_in(self.content))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors; the names add about a hundred bytes each to the file."""
        return sum(piece.nbytes for piece in self.pieces)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Files to write, and small text files (an index, Megatron's tracker) that make them valid at the end.

    directory: holds all files and appears complete, in one step; None: each file appears under its own name.
    """

    files: tuple[OutputFile, ...]
    texts: tuple[tuple[Path, str], ...] = ()
    directory: Path | None = None

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    def describe(self) -> list[str]:
        """One line per file."""
        lines = [
            f"{file.path}: {len(file.pieces)} tensors, {human(file.nbytes)}, {_dtypes(file.pieces)}"
            for file in self.files
        ]
        return [*lines, *(str(path) for path, _ in self.texts), f"{human(self.nbytes)} in all"]


def human(nbytes: int) -> str:
    """Formats bytes: 1536 -> "1.5 KiB"."""
    size, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def short(dtype: torch.dtype) -> str:
    """Short name of a dtype: torch.bfloat16 -> "bf16"."""
    names = {value: key for key, value in TORCH_DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def cast(dtype: torch.dtype, wanted: str | None) -> torch.dtype:
    """Dtype in which a tensor of `dtype` is written; integer dtypes do not change."""
    if wanted is None or not dtype.is_floating_point:
        return dtype
    if wanted not in TORCH_DTYPES:
        raise CheckpointError(f"dtype {wanted!r}: must be one of {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[wanted]


def _dtypes(pieces: list[Piece]) -> str:
    return "/".join(sorted({short(piece.dtype) for piece in pieces}))


def _pieces_in(value):
    if isinstance(value, Piece):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _pieces_in(item)
