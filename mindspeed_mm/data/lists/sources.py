"""Reads the rows behind `data_path`: data.txt with a source per line, or one source itself.

A line is `folder,annotation file`, or a source alone: an annotation file, a tar shard (`shards/{000000..000009}.tar`
and `shards/*.tar` name several) or a folder. Options may follow: `folder,annotation file,10,trigger=sks`. Blank lines and
lines that begin with # are skipped. A relative name is looked up first in the working directory, as in the published
scripts, then beside data.txt.
"""

import dataclasses
import glob
import os
import re
from collections.abc import Iterator
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
    path = Path(data_path)
    if os.path.isdir(path) or format_of(path) is not None or path.suffix.lower() in (".pkl", ".pickle", ".gz"):
        if not os.path.exists(path):
            raise DataError(f"{path}: no such file (dataset_param.basic_parameters.data_path)")
        return _source(None, path)
    rows: list[Row] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip() and not line.strip().startswith("#"):
            rows.extend(_line(path, number, line.strip()))
    if not rows:
        raise DataError(f"{path}: names no clips; a line is `folder,annotation file`")
    return tuple(rows)


def read_annotation(path: str | Path, folder: str | Path = "") -> tuple[Row, ...]:
    """Rows of one annotation file, with their paths below `folder`; see `formats.FORMATS`."""
    path = Path(path)
    base = Path() if path.suffix.lower() == ".tar" else Path(folder)
    return tuple(read_row(entry, base, place) for place, entry in read_entries(path))


def _line(data_path: Path, number: int, line: str) -> Iterator[Row]:
    where = f"{data_path}:{number}"
    parts, options = _options([part.strip() for part in line.split(",")], where, line)
    folder, name = parts if len(parts) == 2 and parts[1] else (None, parts[0])
    rows = _rows(data_path, where, folder, name)
    if options.trigger is not None:
        rows = (dataclasses.replace(row, trigger=options.trigger) for row in rows)
    # copies are rows of their own, so that each draws its own frames and caption
    yield from rows if options.repeats == 1 else [*rows] * options.repeats


@dataclasses.dataclass(frozen=True, slots=True)
class _Options:
    """What a line says beside its source. repeats: how often an epoch has it. trigger: see `Row.trigger`."""

    repeats: int = 1
    trigger: str | None = None


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


def _rows(data_path: Path, where: str, folder: str | None, name: str) -> Iterator[Row]:
    for annotation in _named(data_path, where, name, folder):
        stated = None if not folder else _beside(data_path, folder)
        if stated is None:
            yield from _source(None, annotation)
            continue
        found = _source(stated, annotation)
        if not os.path.isdir(stated) and any(not Path(row.path).is_absolute() for row in found):
            raise DataError(f"{where}: folder {folder} does not exist")
        yield from found


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
    entries = list(read_entries(path))
    if not entries:
        return ()
    base = Path() if path.suffix.lower() == ".tar" else folder
    rows = [read_row(entry, base or Path(), place) for place, entry in entries]
    # clips are not in the working directory but beside the annotation
    if base is None and not os.path.exists(rows[0].path):
        rows = [read_row(entry, path.parent, place) for place, entry in entries]
    return _finished(path, rows, entries)


def _finished(path: Path, rows: list[Row], entries) -> tuple[Row, ...]:
    """Checks that the rows of a source mention captions; marks them if none has enough facts about the clips."""
    if not any(row.captions for row in rows):
        keys = {str(key) for _, entry in entries for key in entry}
        if keys and not any(fact_of(key) == "cap" for key in keys):
            raise no_key(str(path), "cap", "the caption", sorted(keys))
    if all(row.unusable for row in rows if row.kind != "unknown"):
        rows = [dataclasses.replace(row, bare=True) for row in rows]
    return tuple(rows)
