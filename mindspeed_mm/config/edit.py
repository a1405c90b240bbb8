"""Changing values in a JSON file with comments, while the rest of its text stays as it is.

Reading it with `reader.py` and writing it anew would lose the comments and the layout of a file that people keep.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mindspeed_mm.config.reader import TOKEN, read_json
from mindspeed_mm.errors import ConfigError

Span = tuple[int, int]  # of characters


def write_vectors(path: str | Path, block: str, vectors: dict[str, Sequence[float]]) -> None:
    """Set lists of numbers in the object `block` at the top level of a JSON file, for example shift and scale in "ae".

    A key that is not there is added at the end of the block. Raises ConfigError if the file is no JSON or has no such
    block. The file is replaced in one step.
    """
    path = Path(path)
    root = read_json(path)  # says what is wrong with the file, if anything is
    if not isinstance(root.value, dict) or block not in root.value or not isinstance(root.value[block].value, dict):
        raise ConfigError(f"{path}: has no block {block!r} to write {', '.join(vectors)} into")
    text = path.read_text(encoding="utf-8")
    for key, values in vectors.items():
        text = _with(text, block, key, json.dumps([float(f"{value:.6g}") for value in values]))
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _with(text: str, block: str, key: str, value: str) -> str:
    places = dict(_values(text))
    if (block, key) in places:
        start, end = places[block, key]
        return text[:start] + value + text[end:]
    members = [place for place in places if place[:-1] == (block,)]
    if not members:
        start, end = places[(block,)]
        return f'{text[: start + 1]}"{key}": {value}{text[end - 1 :]}'
    last = places[members[-1]][1]
    line = text.rfind("\n", 0, places[members[-1]][0]) + 1
    indent = text[line : len(text) - len(text[line:].lstrip())]
    return f'{text[:last]},\n{indent}"{key}": {value}{text[last:]}'


def _values(text: str) -> Iterator[tuple[tuple[str, ...], Span]]:
    """Path and span of every value in objects, in the order in which they end; `text` is valid."""
    tokens = [match for match in TOKEN.finditer(text) if match.lastgroup != "skip"]
    stack: list[tuple[int, tuple[str, ...] | None]] = []  # open brackets: where, and the path (None inside a list)
    path: tuple[str, ...] | None = ()
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        mark = token.group()
        if token.lastgroup == "string" and following is not None and following.group() == ":":
            container = stack[-1][1]
            path = None if container is None else (*container, json.loads(mark, strict=False))
        elif token.lastgroup == "mark" and mark in "{[":
            stack.append((token.start(), path))
            path = None if mark == "[" else path
        elif token.lastgroup == "mark" and mark in "}]":
            start, path = stack.pop()
            if path is not None:
                yield path, (start, token.end())
        elif token.lastgroup != "mark" and path is not None:
            yield path, token.span()
