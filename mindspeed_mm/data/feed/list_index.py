"""The usable clips of a list in files that processes share: numbers are mapped, texts are read where they are needed.

A process holds a few hundred bytes, whatever the length of the list. `feed/list_writer.py` writes them, `feed/list_cache.py`
decides where an index lies and when it is used. A folder holds:

    header.json     what the index was made from, names of shapes, rules, size and checksum of each file
    *.ends          where each text of the .bin of the same name ends, 8 bytes each
    lines.bin       "path shape\\n" of each clip: all that the order and its fingerprint need
    rows.bin        the other facts of each clip as JSON
    dropped0.bin    of each rule: what the report says of the rows that it dropped
    codes.bin ...   a number per clip: its shape, its captions, ...
"""

import dataclasses
import json
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_mm.config.data import PreprocessConfig
from mindspeed_mm.data.lists.filters import Clip, Dropped, FilterResult, common_shapes
from mindspeed_mm.data.lists.lazy import Lazy
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.data.lists.shapes import Shapes
from mindspeed_mm.errors import DataError
from mindspeed_mm.files.checksum import crc32

HEADER = "header.json"
BLOCK = 2**22  # bytes read at a time
FACTS = tuple(field.name for field in dataclasses.fields(Row) if field.name != "path")
# file of a number per clip, or per doubtful caption -> its type
NUMBERS = {
    "codes": "i",  # shape
    "captions": "i",  # number of captions
    "assumed": "b",  # 1: a video whose frame rate is assumed
    "doubtful": "i",  # for each caption that cleaning may empty: its clip
    "doubtful_captions": "i",  # and its number among the captions of the clip
    "kinds": "i",  # the last clip of each kind, size and bucket
}


class Texts(Lazy[str]):
    """Texts in a file, read one at a time."""

    def __init__(self, folder: Path, name: str):
        self._file = open(folder / f"{name}.bin", "rb", buffering=0)  # noqa: SIM115  (as long as the process needs it)
        self._ends = _mapped(folder / f"{name}.ends", np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def at(self, place: int) -> str:
        begin, end = self._begin(place), int(self._ends[place])
        return b"".join(self._blocks(begin, end)).decode("utf-8", "surrogatepass")

    def checksum(self, chosen: np.ndarray, value: int) -> int:
        """CRC-32 of the texts that are chosen ([n] bool) one after another; value: of what is before them."""
        edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False)).tolist()
        for first, behind in zip(edges[::2], edges[1::2], strict=True):
            for block in self._blocks(self._begin(first), int(self._ends[behind - 1])):
                value = crc32(block, value)
        return value

    def _begin(self, place: int) -> int:
        return int(self._ends[place - 1]) if place else 0

    def _blocks(self, begin: int, end: int) -> Iterator[bytes]:
        """Read, not mapped: pages that only this process maps would count as its own, and a lost disk would kill it."""
        while begin < end:
            block = os.pread(self._file.fileno(), min(BLOCK, end - begin), begin)
            if not block:
                raise OSError(f"{self._file.name}: ends before {end} bytes")
            begin += len(block)
            yield block


class IndexPaths(Lazy[str]):
    """File of each clip of an index. checksum: of all paths, a line each. lines: "path shape\\n" of each clip."""

    def __init__(self, index: "ListIndex"):
        self._index = index
        self.lines, self.checksum = index.lines, index.header["paths"]

    def __reduce__(self):
        return operator.attrgetter("paths"), (self._index,)

    def __len__(self) -> int:
        return len(self.lines)

    def at(self, place: int) -> str:
        return self.lines.at(place).rpartition(" ")[0]


class IndexShapes(Shapes):
    """Shape of each clip of an index."""

    def __init__(self, index: "ListIndex", codes: np.ndarray):
        super().__init__(index.header["shapes"], codes)
        self._index = index

    def __reduce__(self):
        return operator.attrgetter("shapes"), (self._index,)


class ListIndex:
    """The usable clips of a list, as an index has them. Can be pickled for workers of this machine."""

    def __init__(self, folder: Path, header: dict):
        """Use `open_index`."""
        self._folder, self.header = folder, header
        self.lines, self._rows = Texts(folder, "lines"), Texts(folder, "rows")
        numbers = {name: _mapped(folder / f"{name}.bin", np.dtype(kind)) for name, kind in NUMBERS.items()}
        self.shapes, self.paths = IndexShapes(self, numbers["codes"]), IndexPaths(self)
        self._numbers = numbers

    def __reduce__(self):
        return _again, (self._folder, self.header["made"])

    def clip(self, index: int) -> Clip:
        """Clip number `index`. Raises DataError if the disk fails."""
        try:
            path, _, shape = self.lines.at(index).rstrip("\n").rpartition(" ")
            facts = json.loads(self._rows.at(index))
        except (OSError, ValueError) as error:
            raise DataError(f"{self._folder}: row {index} of the list's index is unreadable ({error})") from None
        values = (tuple(value) if isinstance(value, list) else value for value in facts)
        row: dict[str, Any] = dict(zip(FACTS, values, strict=True))
        frames, height, width = map(int, shape.split("x"))
        return Clip(Row(path, **row), frames, height, width)

    @property
    def kinds(self) -> list[Clip]:
        """A clip of each kind, size and bucket."""
        return [self.clip(index) for index in self._numbers["kinds"].tolist()]

    def captions(self, chosen: np.ndarray) -> tuple[int, Sequence[tuple[str, str]]]:
        """Number of captions of the clips that are chosen ([n] bool), and those that cleaning may empty."""
        clips, numbers = self._numbers["doubtful"], self._numbers["doubtful_captions"]
        here = np.flatnonzero(chosen[clips])
        count = int(self._numbers["captions"].sum(where=chosen, dtype=np.int64))
        return count, _Doubtful(self, clips[here], numbers[here])

    def result(self, config: PreprocessConfig, global_batch_size: int | None, source: str) -> FilterResult:
        """What `filter_rows` finds of the same list, with texts that stay on the disk. Raises DataError like it."""
        shapes, dropped = (
            self.shapes.counts,
            [
                Dropped(rule, Texts(self._folder, f"dropped{number}"))
                for number, rule in enumerate(self.header["rules"])
            ],
        )
        common = shapes if global_batch_size is None else common_shapes(shapes, global_batch_size)
        chosen = self.shapes.among(common)
        usable = clips = IndexedClips(self)
        if len(common) < len(shapes):
            clips = IndexedClips(self, _places(chosen))
            dropped.append(Dropped("rare_shape", _Chosen(self.lines, _places(~chosen))))
        assumed = int(self._numbers["assumed"].sum(where=chosen, dtype=np.int64))
        result = FilterResult(clips, tuple(dropped), self.header["total"], usable, common, assumed)
        return result.checked(config, global_batch_size, source)


class IndexedClips(Lazy[Clip]):
    """Clips of an index, made when they are asked for."""

    def __init__(self, source: ListIndex, places: np.ndarray | None = None):
        """places: of the clips; None for all."""
        self.source, self.places = source, places

    def __len__(self) -> int:
        return len(self.source.lines) if self.places is None else len(self.places)

    def at(self, place: int) -> Clip:
        return self.source.clip(place if self.places is None else int(self.places[place]))

    @property
    def captions(self) -> tuple[int, Sequence[tuple[str, str]]]:
        """See `ListIndex.captions`."""
        chosen = np.full(len(self.source.lines), self.places is None)
        if self.places is not None:
            chosen[self.places] = True
        return self.source.captions(chosen)


def index_of(clips: Sequence[Clip]) -> ListIndex | None:
    """The index of which these are all clips, if they are those of one."""
    return clips.source if isinstance(clips, IndexedClips) and clips.places is None else None


def kinds_of(clips: Sequence[Clip]) -> Sequence[Clip]:
    """At least a clip of each kind, size and bucket."""
    index = index_of(clips)
    return clips if index is None else index.kinds


def shapes_of(clips: Sequence[Clip]) -> Sequence[str]:
    """Shape of each clip."""
    if not isinstance(clips, IndexedClips):
        return tuple(clip.key for clip in clips)
    shapes = clips.source.shapes
    return shapes if clips.places is None else Shapes(shapes.names, shapes.codes[clips.places])


def paths_of(clips: Sequence[Clip]) -> Sequence[str]:
    """File of each clip."""
    index = index_of(clips)
    return tuple(clip.row.path for clip in clips) if index is None else index.paths


def triggers_of(clips: Sequence[Clip]) -> set[str | None]:
    """What the rows' sources say of trigger words."""
    index = index_of(clips)
    return {clip.row.trigger for clip in clips} if index is None else set(index.header["triggers"])


class _Chosen(Lazy[str]):
    """Some of the lines, without their ends."""

    def __init__(self, lines: Texts, places: np.ndarray):
        self._lines, self._places = lines, places

    def __len__(self) -> int:
        return len(self._places)

    def at(self, place: int) -> str:
        return self._lines.at(int(self._places[place])).rstrip("\n")


class _Doubtful(Lazy[tuple[str, str]]):
    """(path, caption) of captions that cleaning may empty."""

    def __init__(self, index: ListIndex, clips: np.ndarray, numbers: np.ndarray):
        self._index, self._clips, self._numbers = index, clips, numbers

    def __len__(self) -> int:
        return len(self._clips)

    def at(self, place: int) -> tuple[str, str]:
        row = self._index.clip(int(self._clips[place])).row
        return row.path, row.captions[int(self._numbers[place])]


def _places(chosen: np.ndarray) -> np.ndarray:
    return np.flatnonzero(chosen).astype(np.int32)


def _mapped(path: Path, kind) -> np.ndarray:
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)


# ------------------------------------------------------------------------------------------------------------- reading


def read_header(folder: Path) -> dict:
    """Header of an index. Raises OSError if there is none, ValueError if it is damaged."""
    content = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("checksum") != header_checksum(content.get("header")):
        raise ValueError("another checksum")
    return content["header"]


def open_index(folder: Path, header: dict) -> ListIndex:
    """The index of a header. Raises OSError or ValueError if one of its files is missing, short or damaged."""
    for name, (size, checksum) in header["files"].items():
        value = found = 0
        with open(folder / name, "rb", buffering=0) as file:
            while block := file.read(BLOCK):
                value, found = crc32(block, value), found + len(block)
        if (found, value) != (size, checksum):
            raise ValueError(f"{name} is damaged")
    return ListIndex(folder, header)


def _again(folder: Path, made: str) -> ListIndex:
    """The index in a worker that was started without its parent's memory."""
    header = read_header(folder)
    if header["made"] != made:
        raise DataError(f"{folder}: another run has replaced the index of the list; start this run again")
    return ListIndex(folder, header)


def header_checksum(header) -> int:
    """Checksum of the header, which is the file's other part."""
    return crc32(json.dumps(header).encode())
