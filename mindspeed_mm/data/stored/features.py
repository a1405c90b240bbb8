"""Stored features: outputs of the frozen encoders for clips and captions, in safetensors shards with an index.

A folder holds two parts, "video" (posteriors of the autoencoder) and "text". `<part>.json` holds the settings of the
features. Each shard has an index beside it that lists its entries and is written after it; a shard without index is
ignored. So an interrupted extraction loses one shard, and any number of processes can write at the same time. Both
have checksums, which are compared whenever something is read. If several entries share a key, the shard with the last
name wins.
"""

import collections
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from mindspeed_mm import atomic
from mindspeed_mm.data.decode import media
from mindspeed_mm.errors import DataError
from mindspeed_mm.files.checksum import crc32

VIDEO, TEXT = "video", "text"

_SHARD_BYTES = 512 * 2**20
_SHARD_SECONDS = 600.0  # work that an interruption may lose
_OPEN_SHARDS = 16
_UNKNOWN = -1  # instead of a checksum


class Stamp(NamedTuple):
    """Size and date of a source file; zeros if it is missing."""

    size: int
    date_ns: int

    @classmethod
    def of(cls, path: str) -> "Stamp":
        try:
            status = media.stat(path)
        except OSError:
            return cls(0, 0)
        return cls(status.st_size, status.st_mtime_ns)


class Entry(NamedTuple):
    """A line of an index. source: file or text. stamp: of the file at that time. fault: why there are no features, or
    None. checksum: of the tensors, see `_checksum`; None in indexes of the first releases.
    """

    key: str
    source: str
    stamp: Stamp | None = None
    fault: str | None = None
    checksum: int | None = None


def digest(text: str) -> str:
    """Key for a described object: 32 hexadecimal digits of a hash of its description."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# ---------------------------------------------------------------------------------------------------------------- settings


def write_settings(folder: Path, part: str, settings: Mapping) -> None:
    """Begins a part, or continues one with the same settings (else DataError)."""
    if (folder / f"{part}.json").exists():
        check_settings(folder, part, settings)
        return
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / f"{part}.json", json.dumps(settings, indent=1))


def summary(folder: Path) -> dict[str, int]:
    """Files of a folder and their sizes; processes that share the folder must see the same."""
    try:
        return {item.name: item.stat().st_size for item in sorted(folder.iterdir()) if not item.name.startswith(".")}
    except OSError:
        return {}


def check_settings(folder: Path, part: str, wanted: Mapping) -> None:
    """Raises DataError, naming the changed settings, if a part was made with other settings or is missing."""
    file = folder / f"{part}.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: holds no stored {part} features; tools/extract_features.py makes them") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    changed = list(_differences(stored, json.loads(json.dumps(wanted))))
    if changed:
        raise DataError(
            f"{folder}: the stored {part} features are stale, {'; '.join(changed)}. "
            "Extract them again into another folder (feature_folder of the data JSON)"
        )


def _differences(stored, wanted, place: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            yield from _differences(stored.get(key), wanted.get(key), f"{place}.{key}" if place else key)
    elif stored != wanted:
        yield f"{place} was {_short(stored)} and is {_short(wanted)}"


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ----------------------------------------------------------------------------------------------------------------- writing


class PartWriter:
    """Adds entries to a part. Each process of an extraction has its own."""

    def __init__(self, folder: Path, part: str, series: int, rank: int):
        """series: a number shared by all processes of one extraction and used by no earlier one; see `next_series`."""
        self._folder = folder
        self._name = f"{part}-{series:04d}-{rank:05d}"
        self._shards = 0
        self._clear()

    def add(self, entry: Entry, tensors: Mapping[str, Tensor]) -> None:
        """Adds an entry. tensors: name within the entry -> CPU tensor; none for an entry with a fault."""
        self._entries.append(entry._replace(checksum=_checksum(tensors)))
        for name, tensor in tensors.items():
            self._tensors[f"{entry.key}.{name}"] = tensor.contiguous()
            self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes >= _SHARD_BYTES or time.monotonic() - self._begun > _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the entries added since the last shard."""
        if not self._entries:
            return
        name = f"{self._name}-{self._shards:05d}"
        with atomic.replacing(self._folder / f"{name}.safetensors") as file:
            file.write(save(self._tensors))
        content = {"entries": self._entries, "checksum": _checksum_of_entries(self._entries)}
        atomic.write_text(self._folder / f"{name}.json", json.dumps(content))
        self._shards += 1
        self._clear()

    def _clear(self) -> None:
        self._entries: list[Entry] = []
        self._tensors: dict[str, Tensor] = {}
        self._bytes = 0
        self._begun = time.monotonic()


def next_series(folder: Path, part: str) -> int:
    """A number above those of all existing shards."""
    numbers = [int(file.name.split("-")[1]) for file in folder.glob(f"{part}-*.safetensors")]
    return max(numbers, default=-1) + 1


# ----------------------------------------------------------------------------------------------------------------- reading


def read_index(folder: Path, part: str) -> Iterator[tuple[str, Entry]]:
    """(shard, entry) of a part; later entries take precedence."""
    for file in sorted(folder.glob(f"{part}-*.json")):
        entries: list[Entry] = []
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            entries = [_entry(*values) for values in content["entries"]]
            fault = None if _is_whole(content, entries) else "its checksum is not the one that was recorded"
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if fault is not None:
            raise DataError(f"{file}: not a readable index of stored features ({fault}); delete it and its shard")
        for entry in entries:
            yield file.stem, entry


def _entry(key: str, source: str, stamp: list[int] | None, fault: str | None, checksum: int | None = None) -> Entry:
    _number(key)
    return Entry(key, source, None if stamp is None else Stamp(*stamp), fault, checksum)


def _is_whole(content: Mapping, entries: Sequence[Entry]) -> bool:
    """True if an index is as it was written; indexes of the first releases have no checksums."""
    if "checksum" not in content:
        return all(entry.checksum is None for entry in entries)
    return content["checksum"] == _checksum_of_entries(entries)


def _checksum_of_entries(entries: Sequence[Entry]) -> int:
    return crc32(json.dumps(entries).encode())


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the tensors of an entry, with their names, types and shapes."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = crc32(tensor.contiguous().flatten().view(torch.uint8).numpy(), value)
    return value


class PartReader:
    """Finds entries of a part by key. Needs 20 bytes per entry, so every worker process can have a copy."""

    def __init__(self, folder: Path, part: str):
        self._folder, self._part = folder, part
        places: dict[str, tuple[int, int]] = {}
        shards: dict[str, int] = {}
        self.faults: dict[str, str] = {}
        for shard, entry in read_index(folder, part):
            checksum = _UNKNOWN if entry.checksum is None else entry.checksum
            places[entry.key] = shards.setdefault(shard, len(shards)), checksum
            self.faults.pop(entry.key, None)
            if entry.fault is not None:
                self.faults[entry.key] = entry.fault
        self._shards = list(shards)
        numbers = np.array([_number(key) for key in places], dtype=np.uint64)
        order = np.argsort(numbers)
        self._numbers = numbers[order]
        self._places = np.array([place for place, _ in places.values()], dtype=np.int32)[order]
        self._checksums = np.array([checksum for _, checksum in places.values()], dtype=np.int64)[order]
        self._open: collections.OrderedDict[str, Any] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, key: str) -> bool:
        return self._place(key) is not None

    def load(self, key: str, names: tuple[str, ...], what: str) -> list[Tensor]:
        """All tensors of an entry, by their names. Raises DataError if there are none, or if they have changed since
        they were written. what: the clip or text, for the message.
        """
        if key in self.faults:
            raise DataError(self.faults[key])
        place = self._place(key)
        if place is None:
            raise DataError(f"{what}: has no stored {self._part} features in {self._folder}")
        shard, checksum = self._shards[self._places[place]], int(self._checksums[place])
        try:
            file = self._file(shard)
            found = {name: file.get_tensor(f"{key}.{name}") for name in names}
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{what}: stored features in {self._folder / shard}.safetensors: {error}") from None
        if checksum not in (_UNKNOWN, _checksum(found)):
            raise DataError(
                f"{what}: stored features in {self._folder / shard}.safetensors are damaged, their checksum is not the one "
                "that was recorded; delete the shard and its .json, and run tools/extract_features.py"
            )
        return list(found.values())

    def _place(self, key: str) -> int | None:
        place = int(np.searchsorted(self._numbers, _number(key)))
        found = place < len(self._numbers) and self._numbers[place] == _number(key)
        return place if found else None

    def _file(self, shard: str):
        if shard not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)
            self._open[shard] = safetensors.safe_open(self._folder / f"{shard}.safetensors", framework="pt")
        self._open.move_to_end(shard)
        return self._open[shard]


def _number(key: str) -> np.uint64:
    """First 64 bits of a key. Among a million keys two share them with a chance of 3e-8; `load` would detect that."""
    return np.uint64(int(key[:16], 16))
