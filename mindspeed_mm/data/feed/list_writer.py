"""Writes the index of a list (`feed/list_index.py`) while the rows go by; none of them has to stay in memory."""

import array
import json
import os
from pathlib import Path
from typing import BinaryIO

from mindspeed_mm import atomic
from mindspeed_mm.data.feed.list_index import BLOCK, FACTS, HEADER, NUMBERS, header_checksum
from mindspeed_mm.data.lists.filters import Clip, assumes_rate
from mindspeed_mm.data.text.emptied import is_doubtful
from mindspeed_mm.files.checksum import crc32

_AS_JSON = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would make an encoder for each row


class IndexWriter:
    """Takes the rows of a list in order; the index appears complete with `finish`, or not at all."""

    def __init__(self, files: atomic.Together, folder: Path):
        """files: for `folder`, in which the index will lie."""
        self._files, self._folder = files, folder
        self._lines, self._rows = self._text("lines"), self._text("rows")
        self._dropped: dict[str, _TextWriter] = {}
        self._numbers = {name: array.array(kind) for name, kind in NUMBERS.items()}
        self._shapes: dict[str, int] = {}
        self._kinds: dict[tuple, int] = {}
        self._triggers: dict[str | None, None] = {}
        self._paths = self._total = 0

    def _open(self, name: str) -> BinaryIO:
        return self._files.open(self._folder / name, _opened)

    def _text(self, name: str) -> "_TextWriter":
        return _TextWriter(name, self._open(f"{name}.bin"))

    def drop(self, rule: str, reason: str) -> None:
        """Adds a row that a rule drops."""
        self._total += 1
        if rule not in self._dropped:
            self._dropped[rule] = self._text(f"dropped{len(self._dropped)}")
        self._dropped[rule].add(reason)

    def add(self, clip: Clip) -> None:
        """Adds a usable row."""
        row, key, numbers = clip.row, clip.key, self._numbers
        place = len(numbers["codes"])
        self._total += 1
        self._lines.add(f"{row.path} {key}\n")
        self._rows.add(_AS_JSON([getattr(row, name) for name in FACTS]))
        self._paths = crc32(f"{row.path}\n".encode(), self._paths)
        numbers["codes"].append(self._shapes.setdefault(key, len(self._shapes)))
        numbers["captions"].append(len(row.captions))
        numbers["assumed"].append(assumes_rate(clip))
        for number, text in enumerate(row.captions):
            if is_doubtful(text):
                numbers["doubtful"].append(place)
                numbers["doubtful_captions"].append(number)
        self._kinds[row.kind, clip.source_size, row.bucket] = place
        self._triggers[row.trigger] = None

    def finish(self, facts: dict) -> None:
        """Writes the header. facts: what the index was made from, for `read_header`."""
        texts = [self._lines, self._rows, *self._dropped.values()]
        self._numbers["kinds"].extend(self._kinds.values())
        columns = {f"{text.name}.ends": text.ends for text in texts}
        columns |= {f"{name}.bin": numbers for name, numbers in self._numbers.items()}
        files = {f"{text.name}.bin": (text.ends[-1] if text.ends else 0, text.checksum) for text in texts}
        for name, numbers in columns.items():
            content = numbers.tobytes()
            self._open(name).write(content)
            files[name] = len(content), crc32(content)
        header = {
            **facts,
            "total": self._total,
            "shapes": list(self._shapes),
            "rules": list(self._dropped),
            "triggers": list(self._triggers),
            "paths": self._paths,
            "files": files,
        }
        write_header(self._files, self._folder, header)


def write_header(files: atomic.Together, folder: Path, header: dict) -> None:
    """Adds the header of an index, with a name of its own for it: `made`."""
    header = {**header, "made": os.urandom(8).hex()}
    content = json.dumps({"header": header, "checksum": header_checksum(header)}, ensure_ascii=False)
    files.open(folder / HEADER, _opened).write(content.encode())


def _opened(path: Path) -> BinaryIO:
    return open(path, "wb", buffering=BLOCK)


class _TextWriter:
    def __init__(self, name: str, file: BinaryIO):
        self.name = name
        self.ends = array.array("q")
        self.checksum = 0
        self._file, self._end = file, 0

    def add(self, text: str) -> None:
        content = text.encode("utf-8", "surrogatepass")
        self._file.write(content)
        self.checksum = crc32(content, self.checksum)
        self._end += len(content)
        self.ends.append(self._end)
