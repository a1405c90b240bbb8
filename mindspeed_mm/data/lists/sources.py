"""Reads the rows behind `data_path`: data.txt with a source per line, or one source itself.

A line is `folder,annotation file`, or a source alone: an annotation file, a tar shard (`shards/{000000..000009}.tar`
and `shards/*.tar` name several) or a folder. Options may follow: `folder,annotation file,10,trigger=sks`. Blank lines and
lines that begin with # are skipped. A relative name is looked up first in the working directory, as in the published
scripts, then beside data.txt.
"""

import dataclasses
import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mindspeed_mm.data.lists import folders
from mindspeed_mm.data.lists.fields import read_row
from mindspeed_mm.data.lists.formats import format_of, read_entries, read_text
from mindspeed_mm.data.lists.keys import fact_of, no_key
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.errors import DataError

_RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
_MOST_SHARDS = 1_000_000
_MOST_REPEATS = 10_000
_OPTION = re.compile(r"(?:(repeats|trigger)=(.*)|([0-9]+))", re.DOTALL)
# os.path, not Path: `Path.exists` raises OSError for a name that is too long


def read_list(data_path: str | Path) -> tuple[Row, ...]:
    """Rows of all sources, in order. DataError names the file and the faulty line or row."""
    return tuple(row for part in parts_of(data_path) for row in part.rows)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Rows of one source. found: their names were looked up in the working directory, then beside the annotation."""

    rows: Sequence[Row]
    found: bool


def parts_of(data_path: str | Path) -> Iterator[Part]:
    """The sources of a list one after another, as `read_list` joins them: a long list need not be in memory at once."""
    empty = True
    for line in _lines(Path(data_path)):
        parts = (Part(_rows(line, path), line.folder is None and _base(path) is None) for path in line.annotations)
        # copies are rows of their own, so that each draws its own frames and caption
        for part in parts if line.options.repeats == 1 else [*parts] * line.options.repeats:
            empty = empty and not part.rows
            yield part
    if empty and not _is_source(Path(data_path)):
        raise DataError(f"{data_path}: names no clips; a line is `folder,annotation file`")


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file behind a list, and the state in which it was found. folder: of its clips, and whether that is a folder."""

    path: str
    size: int
    changed: int  # nanoseconds
    folder: tuple[str, bool] | None = None


def files_of(data_path: str | Path) -> tuple[File, ...] | None:
    """The files that say all of a list, without a look into annotations; None if a folder of clips is among them."""
    path = Path(data_path)
    found = [] if os.path.isdir(path) else [_file(path)]
    for line in _lines(path):
        folder = None if line.folder is None else (str(line.folder), os.path.isdir(line.folder))
        for annotation in line.annotations:
            files = [annotation]
            if os.path.isdir(annotation):
                inner = folders.annotation_in(annotation)
                files = folders.shards_in(annotation) if inner is None else [inner]
            if not files:
                return None
            found += [_file(file, folder) for file in files]
    return tuple(found)


def _file(path: Path, folder: tuple[str, bool] | None = None) -> File:
    status = os.stat(path)
    return File(str(path), status.st_size, status.st_mtime_ns, folder)


def read_annotation(path: str | Path, folder: str | Path = "") -> tuple[Row, ...]:
    """Rows of one annotation file, with their paths below `folder`; see `formats.FORMATS`."""
    path = Path(path)
    base = Path() if path.suffix.lower() == ".tar" else Path(folder)
    return tuple(read_row(entry, base, place) for place, entry in read_entries(path))


@dataclasses.dataclass(frozen=True, slots=True)
class _Options:
    """What a line says beside its source. repeats: how often an epoch has it. trigger: see `Row.trigger`."""

    repeats: int = 1
    trigger: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    """A line of data.txt. folder: of the clips, if the line states one, under the name that was found."""

    where: str
    stated: str | None
    folder: Path | None
    annotations: Sequence[Path]
    options: _Options


def _is_source(path: Path) -> bool:
    """True if `data_path` is a source itself, not a data.txt."""
    return os.path.isdir(path) or format_of(path) is not None or path.suffix.lower() in (".pkl", ".pickle", ".gz")


def _lines(path: Path) -> Iterator[_Line]:
    if _is_source(path):
        if not os.path.exists(path):
            raise DataError(f"{path}: no such file (dataset_param.basic_parameters.data_path)")
        yield _Line(str(path), None, None, [path], _Options())
        return
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip() and not line.strip().startswith("#"):
            yield _line(path, f"{path}:{number}", line.strip())


def _line(data_path: Path, where: str, line: str) -> _Line:
    parts, options = _options([part.strip() for part in line.split(",")], where, line)
    folder, name = parts if len(parts) == 2 and parts[1] else (None, parts[0])
    annotations = _named(data_path, where, name, folder)
    return _Line(where, folder, _beside(data_path, folder) if folder else None, annotations, options)


def _rows(line: _Line, annotation: Path) -> Sequence[Row]:
    found = _source(line.folder, annotation)
    there = line.folder is None or os.path.isdir(line.folder)
    if not there and any(not Path(row.path).is_absolute() for row in found):
        raise DataError(f"{line.where}: folder {line.stated} does not exist")
    if line.options.trigger is not None:
        found = [dataclasses.replace(row, trigger=line.options.trigger) for row in found]
    return found


def _options(parts: list[str], where: str, line: str) -> tuple[list[str], _Options]:
    """Splits the fields of a line into its one or two names and its options."""
    count = 1 if re.match(r"(repeats|trigger)=", parts[1] if len(parts) > 1 else "") else 2
    names, options = parts[:count], _Options()
    for part in parts[count:]:
        found = _OPTION.fullmatch(part)
        if found is None:
            raise DataError(
                f"{where}: expected `folder,annotation file`, found {len(parts)} fields in {line!r} (a comma cannot be part "
                f"of a path here; {part!r} is no option: a number of repeats, or trigger=WORD)"
            )
        if found[1] == "trigger":
            options = dataclasses.replace(options, trigger=found[2].strip())
            continue
        number = found[3] or found[2]
        if not re.fullmatch("[0-9]{1,5}", number) or not 1 <= int(number) <= _MOST_REPEATS:
            raise DataError(f"{where}: repeats {number!r}: must be a whole number from 1 to {_MOST_REPEATS}")
        options = dataclasses.replace(options, repeats=int(number))
    if not any(names):
        raise DataError(f"{where}: {line!r} names no source; expected `folder,annotation file`")
    return names, options


def _named(data_path: Path, where: str, name: str, folder: str | None) -> list[Path]:
    """Files or folders that match a name. Raises DataError if there are none."""
    names = list(_spread(name, where))
    found = []
    for one in names:
        path = _beside(data_path, one)
        if not os.path.exists(path) and folder:
            path = _beside(data_path, os.path.join(folder, one))
        if any(mark in one for mark in "*?[") and not os.path.exists(path):
            matches = sorted(glob.glob(one)) or sorted(glob.glob(os.path.join(glob.escape(str(data_path.parent)), one)))
            found += [Path(match) for match in matches]
        elif os.path.exists(path):
            found.append(path)
        elif folder is None and "," not in name and format_of(path) is None and not path.suffix:
            raise DataError(f"{where}: {name!r} is neither a folder nor `folder,annotation file`")
        else:
            hint = f"; `{folder},,{one}` repeats a folder" if folder and one.isdecimal() else ""
            raise DataError(f"{where}: annotation file {one} does not exist{hint}")
    if not found:
        raise DataError(f"{where}: no file matches {name}")
    return found


def _spread(name: str, where: str) -> Iterator[str]:
    """Expands `a{000..002}.tar` to three names, with as many digits as the first number has."""
    found = _RANGE.search(name)
    if found is None:
        yield name
        return
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST_SHARDS:
        raise DataError(f"{where}: {found[0]}: the second number must not be below the first, nor a million above it")
    for number in range(first, last + 1):
        yield f"{name[: found.start()]}{number:0{len(found[1])}}{name[found.end() :]}"


def _beside(data_path: Path, name: str) -> Path:
    """`name` itself if it exists (or is absolute), else the file beside data.txt if that exists, else `name`."""
    stated, beside = Path(name), data_path.parent / name
    return beside if not os.path.exists(stated) and os.path.exists(beside) else stated


def _source(folder: Path | None, path: Path) -> tuple[Row, ...]:
    """Rows of an annotation file or a folder. folder: of the clips; None: the working directory or the file's folder."""
    if os.path.isdir(path):
        inner = folders.annotation_in(path)
        if inner is not None:
            return _source(path, inner)
        if shards := folders.shards_in(path):
            return tuple(row for shard in shards for row in _source(None, shard))
        return _finished(path, [read_row(entry, Path(), place) for place, entry in folders.read_folder(path)], ())
    entries = read_entries(path)
    first = next(entries, None)
    if first is None:
        return ()
    base = _base(path) or folder
    # without a folder: the clips may not be in the working directory but beside the annotation
    if base is None and not os.path.exists(read_row(first[1], Path(), first[0]).path):
        base = path.parent
    keys: set[str] = set()
    rows = []
    for place, entry in itertools.chain([first], entries):
        rows.append(read_row(entry, base or Path(), place))
        keys.update(entry)  # pyright: ignore[reportArgumentType, reportCallIssue]  # a dict, as `read_row` found
    return _finished(path, rows, keys)


def _base(path: Path) -> Path | None:
    """Where the clips of a source are, if it says so itself: a tar holds them."""
    return Path() if path.suffix.lower() == ".tar" else None


def _finished(path: Path, rows: list[Row], keys: Iterable[str]) -> tuple[Row, ...]:
    """Checks that the rows of a source mention captions; marks them if none has enough facts about the clips."""
    if not any(row.captions for row in rows):
        keys = set(map(str, keys))
        if keys and not any(fact_of(key) == "cap" for key in keys):
            raise no_key(str(path), "cap", "the caption", sorted(keys))
    if all(row.unusable for row in rows if row.kind != "unknown"):
        rows = [dataclasses.replace(row, bare=True) for row in rows]
    return tuple(rows)
