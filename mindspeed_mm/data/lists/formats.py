"""Annotation files -> entries as plain Python values, with the place of each for messages: one function per format.

In .json and .jsonl a value has its type. A cell of a .csv is a text, and so may be one of a .parquet: lists and objects
are written in it as JSON, or as Python's repr, which is what pandas writes.
"""

import ast
import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

from mindspeed_mm.errors import DataError

Entries = Iterator[tuple[str, object]]  # (place, entry)

# Keys that are read; other columns of a table are left alone.
KEYS = ("path", "cap", "resolution", "height", "width", "num_frames", "fps", "cut", "crop", "aesthetic", "aes")
_RESOLUTION = {"resolution.height": "height", "resolution.width": "width"}  # as pandas flattens it
_TEXTS = ("path", "cap")


def read_entries(path: Path) -> Entries:
    """The entries of a file, by its suffix. DataError names the file and the line or row that is wrong."""
    suffix = path.suffix.lower()
    if suffix in (".pkl", ".pickle"):
        raise DataError(
            f"{path}: loading a pickle runs code from the file, so it is refused. Convert it once, if you trust it: "
            f"python -c \"import pandas; pandas.read_pickle('{path}').to_json('{path.with_suffix('.json')}', orient='records')\""
        )
    if suffix not in _FORMATS:
        raise DataError(f"{path}: annotation files end in {', '.join(_FORMATS)}")
    return _FORMATS[suffix](path)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (dataset_param.basic_parameters.data_path)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def missing(value) -> bool:
    """JSON null, or the NaN that pandas writes for a gap in a column."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _json(path: Path) -> Entries:
    entries = _parse(read_text(path), str(path), 1)
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected an array of objects, found {type(entries).__name__}")
    for number, entry in enumerate(entries, start=1):
        yield f"{path} row {number}", entry


def _jsonl(path: Path) -> Entries:
    # not splitlines(): captions may hold characters such as U+2028, which it takes for the end of a line
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parse(line, str(path), number)


def _parse(text: str, file: str, first_line: int):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{first_line + error.lineno - 1}: not valid JSON: {error.msg}") from None


def _csv(path: Path) -> Entries:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    if "path" not in (reader.fieldnames or ()):
        raise DataError(f"{path}:1: the first line must name the columns, 'path' among them; found {reader.fieldnames}")
    try:
        for record in reader:
            place = f"{path}:{reader.line_num}"
            if None in record or None in record.values():
                raise DataError(f"{place}: expected {len(reader.fieldnames)} cells, as the first line has")
            yield place, _cells(record, place)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num + 1}: not valid CSV: {error}") from None


def _parquet(path: Path) -> Entries:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path}: .parquet needs the package pyarrow: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as file:
            # Leaves of nested columns are "resolution.height" here too, so they are chosen by their first name.
            names = [name for name in file.schema_arrow.names if name in KEYS or name in _RESOLUTION]
            if "path" not in names:
                raise DataError(f"{path}: has no column 'path'; found {', '.join(file.schema_arrow.names)}")
            number = 0
            for batch in file.iter_batches(columns=names):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", _cells(record, f"{path} row {number}")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (dataset_param.basic_parameters.data_path)") from None
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]})") from None


_FORMATS = {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet, ".csv": _csv}


def _cells(record: dict, place: str) -> dict:
    """A row of a table as an entry: texts become values, empty cells are missing, flattened columns are joined."""
    entry = {}
    for column, cell in record.items():
        name = _RESOLUTION.get(column, column)
        if name in KEYS and not missing(cell) and cell != "":
            entry[name] = _cell(name, cell, place)
    return entry


def _cell(name: str, cell, place: str):
    if not isinstance(cell, str) or name == "path":
        return cell
    text = cell.strip()
    if name in _TEXTS and not (text.startswith("[") and text.endswith("]")):
        return cell
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return cell if name in _TEXTS and not _is_texts(value) else value
    if name in _TEXTS:
        return cell  # a caption that begins and ends with brackets
    if text.lower() in ("nan", "none", "null"):
        return None
    raise DataError(f"{place}: {name} {text[:40]!r} is neither a number nor JSON")


def _is_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
