"""Reads files of prompts: a table maps each suffix to a reader; all formats pass the same checks.

In formats with lines, blank lines and lines that begin with # or // hold no prompt; the log counts them. A file with
more prompts than the limit is refused, not cut.
"""

import csv
import io
import os
import re
from collections.abc import Callable

from mindspeed_mm import logs
from mindspeed_mm.config.sample import PromptConfig
from mindspeed_mm.errors import DataError
from mindspeed_mm.schema import Node, build, node_from_python, parse_json, read_text

_log = logs.get(__name__)
_FILE_NAME = re.compile(r"\S*\.[A-Za-z][A-Za-z0-9]{1,4}")  # no prompt of one word looks like this
_TEXT_KEYS = ("caption", "text", "cap")  # names of a table's column that are read as `prompt`

MAX_PROMPTS = 1000  # per file, unless the job sets another limit; the original uses the first 1000 of any file


def read_prompts(prompt: str, limit: int = MAX_PROMPTS) -> list[PromptConfig]:
    """Prompts of the file that `prompt` names, or `prompt` itself. ConfigError and DataError name file, line and rule."""
    if not is_prompt_file(prompt):
        return [build(PromptConfig, node_from_python({"prompt": prompt}, "", "prompt"))]
    nodes = _READERS[_suffix(prompt)](prompt)
    if not nodes:
        raise DataError(f"{prompt}: holds no prompt")
    if len(nodes) > limit:
        raise DataError(
            f"{prompt}: holds {len(nodes)} prompts, more than --max-prompts {limit} (max_prompts in the JSON)"
        )
    return [build(PromptConfig, _as_object(node)) for node in nodes]


def is_prompt_file(prompt: str) -> bool:
    """True if `prompt` names a file of prompts. Raises DataError for a file name that cannot be read as one."""
    known = ", ".join(_READERS)
    if "\0" in prompt or "\n" in prompt or len(prompt) > 4096:
        return False
    if os.path.isfile(prompt):
        if _suffix(prompt) not in _READERS:
            raise DataError(f"{prompt}: is a file, but prompts are read from {known}; for a prompt, add a word")
        return True
    path = _suffix(prompt) in _READERS and (" " not in prompt or os.sep in prompt)
    if path or (_FILE_NAME.fullmatch(prompt) and not prompt.endswith(".")):
        raise DataError(f"{prompt}: no such file of prompts (they end in {known})")
    return False


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _lines(file: str) -> list[tuple[int, str]]:
    """(number, text) of lines that are not blank. Only line feeds end a line, since U+2028 may be part of a text."""
    lines = [(number, line.strip()) for number, line in enumerate(read_text(file).split("\n"), start=1)]
    kept = [(number, line) for number, line in lines if line and not line.startswith(("#", "//"))]
    comments = sum(line.startswith(("#", "//")) for _, line in lines)
    if comments or len(lines) - comments - len(kept) > 1:  # the end of the file counts as a blank line
        _log.info(
            f"{file}: {len(kept)} prompts; {comments} comments and {len(lines) - comments - len(kept)} blank lines left out"
        )
    return kept


def _text(file: str) -> list[Node]:
    return [Node(line, file, number, "") for number, line in _lines(file)]


def _json_lines(file: str) -> list[Node]:
    return [parse_json(line, file, number) for number, line in _lines(file)]


def _json(file: str) -> list[Node]:
    """Reads a list of texts or objects, at the top or under the key "prompts"."""
    root = parse_json(read_text(file), file)
    node = root.value.get("prompts", root) if isinstance(root.value, dict) else root
    if not isinstance(node.value, list):
        raise node.error('expected a list of prompts, or {"prompts": [...]}')
    return node.value


def _table(file: str) -> list[Node]:
    """The first line names the columns and must include `prompt`; other columns match the keys of .jsonl; an empty
    cell is ignored.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True, skipinitialspace=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        column = next((name for name in ("prompt", *_TEXT_KEYS) if name in names), None)
        if column is None:
            raise DataError(f"{file}:1: the first line must name the columns, 'prompt' among them; found {names[:8]}")
        reader.fieldnames = ["prompt" if name == column else name for name in names]
        return [_record(file, reader.line_num, record) for record in reader if any(record.values())]
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num + 1}: not valid CSV: {error}") from None


def _record(file: str, line: int, record: dict) -> Node:
    if None in record or None in record.values():
        raise DataError(f"{file}:{line}: expected {len([key for key in record if key])} cells, as the first line has")
    value = {}
    for name, cell in record.items():
        texts = name in ("prompt", "negative_prompt", "negative")
        if texts:
            value[name] = Node(cell.strip(), file, line, name)
        elif cell.strip():
            value[name] = parse_json(cell, file, line).moved(name)
    return Node(value, file, line, "")


def _as_object(node: Node) -> Node:
    """Wraps a plain text as an object with only a prompt."""
    if not isinstance(node.value, str):
        return node
    return Node({"prompt": node.moved("prompt")}, node.file, node.line, node.path)


_READERS: dict[str, Callable[[str], list[Node]]] = {
    ".txt": _text,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _table,
}
