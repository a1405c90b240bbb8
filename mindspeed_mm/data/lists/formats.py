"""Reads annotation files into entries of plain Python values with their places; each format is a row of `FORMATS`.

Values in .json and .jsonl have types. A cell of a table is a text, and so may be a cell of a .parquet: lists and
objects are written as JSON, or as Python's repr, which pandas writes.
"""

import ast
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mindspeed_mm.data.lists.fields import missing
from mindspeed_mm.data.lists.keys import fact_of, no_key
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.data.lists.shards import read_shard
from mindspeed_mm.errors import DataError

Entries = Iterator[tuple[str, object]]  # (place, entry)


def format_of(path: Path) -> Callable[[Path], Entries] | None:
    """Reader of a file by its suffix, with or without .gz, in any case; None for other suffixes."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    return None if suffix == ".tar" and name.endswith(".gz") else FORMATS.get(suffix)


def read_entries(path: Path) -> Entries:
    """Entries of a file, read by its suffix. DataError names the file and the faulty line or row."""
    if Path(path.name.lower().removesuffix(".gz")).suffix in (".pkl", ".pickle"):
        raise DataError(
            f"{path}: loading a pickle runs code from the file, so it is refused. Convert it once, if you trust it: "
            f"python -c \"import pandas; pandas.read_pickle('{path}').to_json('{path.with_suffix('.json')}', orient='records')\""
        )
    read = format_of(path)
    if read is None:
        raise DataError(
            f"{path}: annotation files end in {', '.join(FORMATS)}; all but .parquet and .tar may be gzipped"
        )
    return read(path)


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, which may be gzipped. Raises DataError if it is unreadable."""
    content = b""
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (dataset_param.basic_parameters.data_path)") from None
    except UnicodeDecodeError as error:
        utf16 = "; it is UTF-16, save it as UTF-8" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}){utf16}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None


# --------------------------------------------------------------------------------------------------------------- JSON


def _json(path: Path) -> Entries:
    """Reads a JSON value, or JSON lines, whatever the suffix: lists of both kinds end in .json and in .jsonl."""
    text = read_text(path)
    if path.name.lower().removesuffix(".gz").endswith(".json") or text.lstrip()[:1] == "[":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            if text.lstrip()[:1] != "{" or not error.msg.startswith("Extra data"):
                raise _invalid(str(path), error, 1) from None
        except (ValueError, RecursionError) as error:
            raise _invalid(str(path), error, 1) from None
        else:
            yield from _rows(path, content)
            return
    # not splitlines(): captions may hold characters such as U+2028, which it takes for the end of a line
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _invalid(str(path), error, number) from None
            yield f"{path}:{number}", entry


def _invalid(file: str, error: Exception, first_line: int) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"{file}:{first_line + error.lineno - 1}: not valid JSON: {error.msg}")
    reason = "nested too deep" if isinstance(error, RecursionError) else "a number has thousands of digits"
    return DataError(f"{file}:{first_line}: not readable JSON: {reason}")


def _rows(path: Path, content) -> Entries:
    """Entries of a JSON value: a list, {"data": [...]}, columns {"path": [...], ...}, or {file: caption or entry}."""
    if isinstance(content, dict):
        content = _entries_of(path, content)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected an array of objects, found {type(content).__name__}")
    for number, entry in enumerate(content, start=1):
        yield f"{path} row {number}", entry


def _entries_of(path: Path, content: dict) -> list:
    lists = {
        key: value for key, value in content.items() if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    if len(lists) == 1 or "data" in lists:
        return lists["data"] if "data" in lists else next(iter(lists.values()))
    columns = {key: value for key, value in content.items() if isinstance(value, (list, dict))}
    if any(fact_of(key) == "path" for key in columns):  # pandas' default format of a table
        columns = {key: list(value.values()) if isinstance(value, dict) else value for key, value in columns.items()}
        if len({len(value) for value in columns.values()}) > 1:
            raise DataError(
                f"{path}: columns of different lengths: {_listed(f'{k} {len(v)}' for k, v in columns.items())}"
            )
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if content and all(Row.kind_of(key) != "unknown" for key in content):
        return [
            {**value, "path": file} if isinstance(value, dict) else {"path": file, "cap": value}
            for file, value in content.items()
        ]
    if "path" in map(fact_of, content):
        return [content]  # one row
    raise DataError(
        f"{path}: expected an array of objects, or one under a key such as 'data'; found an object with the keys "
        f"{_listed(map(repr, content))}"
    )


def _listed(names) -> str:
    names = [str(name)[:40] for name in names]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "(none)"


# ------------------------------------------------------------------------------------------------------------- tables


def _table(path: Path) -> Entries:
    """Reads .csv and .tsv: the first line names the columns; if it has no comma, a .csv may use ; or tabs."""
    text = read_text(path)
    header = text.lstrip("\n")[:10_000].split("\n", 1)[0]
    tabs = ".tsv" in path.suffixes[-2:] or ("," not in header and "\t" in header)
    mark = "\t" if tabs else ";" if "," not in header and ";" in header else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=mark)
    try:
        names = list(reader.fieldnames or ())
        if "path" not in map(fact_of, names):
            raise no_key(f"{path}:1", "path", "the file (the first line names the columns)", names)
        for record in reader:
            place = f"{path}:{reader.line_num}"
            if None in record or None in record.values():
                raise DataError(f"{place}: expected {len(names)} cells, as the first line has")
            yield place, _cells(record)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num + 1}: not valid CSV: {error}") from None


def _parquet(path: Path) -> Entries:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path}: .parquet needs the package pyarrow: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as file:
            # Leaves of nested columns are named "resolution.height" here, so they are chosen by their first name.
            names = [name for name in file.schema_arrow.names if fact_of(name) is not None]
            if "path" not in map(fact_of, names):
                raise no_key(str(path), "path", "the file", file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(columns=names):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", _cells(record)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (dataset_param.basic_parameters.data_path)") from None
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]})") from None


def _cells(record: dict) -> dict:
    """A row of a table as an entry: empty cells are missing, and a caption may be a list of texts."""
    return {
        name: None if missing(cell) or cell == "" else _texts(cell) if fact_of(name) == "cap" else cell
        for name, cell in record.items()
    }


def _texts(cell):
    """Decodes a list of captions written as text; leaves other captions unchanged."""
    text = cell.strip() if isinstance(cell, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return cell
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    return cell


FORMATS: dict[str, Callable[[Path], Entries]] = {
    ".json": _json,
    ".jsonl": _json,
    ".ndjson": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
    ".tar": read_shard,
}
