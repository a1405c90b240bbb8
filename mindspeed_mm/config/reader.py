"""JSON with comments -> nodes that remember their line -> frozen dataclasses.

The published configs hold `#` comments, so the files are parsed here instead of by `json`, which also gives every
value its line for the error messages. What a key may be is written in the dataclasses alone; this file knows no key.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from pathlib import Path

from mindspeed_mm.errors import ConfigError

TOKEN = re.compile(
    r"""(?P<skip>[\s\ufeff]+|\#[^\n]*|//[^\n]*|/\*.*?\*/)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<word>true|false|null)
      | (?P<mark>[{}\[\]:,])""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"true": True, "false": False, "null": None}


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A JSON value and where it stands: `value` holds dicts and lists of nodes, or a plain scalar."""

    value: object
    file: str
    line: int  # 1-based; 0 when the value came from Python and not from a file
    path: str  # dotted, for example "predictor.num_layers[2]"

    def error(self, message: str) -> ConfigError:
        where = f"{self.file}:{self.line} " if self.line else (f"{self.file} " if self.file else "")
        return ConfigError(f"{where}{self.path or '(top level)'}: {message}")

    def plain(self):
        """The value without places: dicts, lists and scalars as `json.loads` would give them."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def moved(self, path: str) -> "Node":
        """The same value under another path; `config/dialects.py` uses it to move keys."""
        return dataclasses.replace(self, path=path)


def find(root: Node, path: str) -> Node:
    """The node at a dotted path, or the nearest one above it that exists, so that an error has a place."""
    node = root
    for key in path.split("."):
        if not isinstance(node.value, dict) or key not in node.value:
            return node.moved(_join(root.path, path))
        node = node.value[key]
    return node


def node_from_python(value, path: str, file: str = "") -> Node:
    """Wrap plain Python values, so that a dict given by a notebook is checked like a file."""
    if isinstance(value, dict):
        value = {str(key): node_from_python(item, _join(path, key), file) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        value = [node_from_python(item, f"{path}[{i}]", file) for i, item in enumerate(value)]
    return Node(value, file, 0, path)


def read_json(path: str | Path) -> Node:
    """Parse a JSON file that may hold `#`, `//`, `/* */` comments and trailing commas."""
    return _Parser(read_text(path), str(path)).parse()


def read_json_lines(path: str | Path) -> list[Node]:
    """Parse a file with a JSON value per line; empty lines and lines that begin with `#` or `//` are left out."""
    lines = enumerate(read_text(path).splitlines(), start=1)
    kept = [(number, line) for number, line in lines if line.strip() and not line.strip().startswith(("#", "//"))]
    return [_Parser(line, str(path), number).parse() for number, line in kept]


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file; ConfigError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None


class _Parser:
    """Recursive descent over the tokens of a file, or of a piece of it that begins in `line`."""

    def __init__(self, text: str, file: str, line: int = 1):
        self.file = file
        self.tokens = list(self._tokens(text, line))
        self.position = 0

    def _tokens(self, text: str, line: int):
        at = 0
        while at < len(text):
            match = TOKEN.match(text, at)
            if match is None:
                raise ConfigError(f"{self.file}:{line} unexpected text {text[at : at + 20].splitlines()[0]!r}")
            if match.lastgroup != "skip":
                yield match.lastgroup, match.group(), line
            line += match.group().count("\n")
            at = match.end()
        yield "end", "end of file", line

    def _next(self):
        token = self.tokens[self.position]
        self.position = min(self.position + 1, len(self.tokens) - 1)
        return token

    def _peek(self) -> str:
        return self.tokens[self.position][1]

    def parse(self) -> Node:
        node = self._value("")
        kind, text, line = self._next()
        if kind != "end":
            raise ConfigError(f"{self.file}:{line} unexpected {text!r} after the end of the value")
        return node

    def _value(self, path: str) -> Node:
        kind, text, line = self._next()
        if kind == "string":
            return Node(json.loads(text, strict=False), self.file, line, path)
        if kind == "number":
            whole = re.fullmatch(r"-?\d+", text)
            return Node(int(text) if whole else float(text), self.file, line, path)
        if kind == "word":
            return Node(_WORDS[text], self.file, line, path)
        if text == "{":
            return Node(self._object(path), self.file, line, path)
        if text == "[":
            return Node(self._array(path), self.file, line, path)
        raise ConfigError(f"{self.file}:{line} {path or '(top level)'}: expected a value, found {text!r}")

    def _object(self, path: str) -> dict[str, Node]:
        items: dict[str, Node] = {}
        while self._peek() != "}":
            kind, text, line = self._next()
            if kind != "string":
                raise ConfigError(f'{self.file}:{line} {path or "(top level)"}: expected a "key", found {text!r}')
            key = json.loads(text, strict=False)
            if key in items:
                raise ConfigError(
                    f"{self.file}:{line} {_join(path, key)}: given twice (first in line {items[key].line})"
                )
            self._mark(":", _join(path, key))
            items[key] = self._value(_join(path, key))
            self._comma("}", path)
        self._next()
        return items

    def _array(self, path: str) -> list[Node]:
        items: list[Node] = []
        while self._peek() != "]":
            items.append(self._value(f"{path}[{len(items)}]"))
            self._comma("]", path)
        self._next()
        return items

    def _comma(self, closing: str, path: str) -> None:
        if self._peek() != closing:
            self._mark(",", path)

    def _mark(self, mark: str, path: str) -> None:
        _, text, line = self._next()
        if text != mark:
            raise ConfigError(f"{self.file}:{line} {path or '(top level)'}: expected {mark!r}, found {text!r}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


# ----------------------------------------------------------------------------------------------- nodes -> dataclasses


def option(default=dataclasses.MISSING, *, aliases: tuple[str, ...] = (), choices: tuple | None = None, read=None):
    """A dataclass field of a config.

    aliases: other spellings of the key that published files use. choices: the legal values. read: a function from
    the key's `Node` to the value, for what a type annotation cannot say.
    """
    metadata = {"aliases": aliases, "choices": choices, "read": read}
    return dataclasses.field(default=default, metadata=metadata)


def build(cls, node: Node, notes: list[str] | None = None):
    """Read a node into the dataclass `cls`: unknown keys, wrong types and missing keys are ConfigErrors with a place.

    `cls.ACCEPTED` (key -> why) lists keys that published files hold and that mean nothing here; each one found is
    reported through `notes`, one sentence each. `cls.problems()` yields (field, message) for impossible combinations.
    """
    if not isinstance(node.value, dict):
        raise node.error(f"expected an object, found {_name_of(node.value)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    spellings = {alias: name for name, field in fields.items() for alias in field.metadata.get("aliases", ())}
    accepted = getattr(cls, "ACCEPTED", {})
    given: dict[str, Node] = {}
    for key, item in node.value.items():
        name = spellings.get(key, key)
        if name in fields:
            if name in given:
                raise item.error(f"also given as {given[name].path!r}")
            given[name] = item
        elif key in accepted:
            if notes is not None:
                notes.append(f"{item.path} has no effect here: {accepted[key]}")
        else:
            raise item.error(f"unknown key{did_you_mean(key, [*fields, *spellings, *accepted])}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in given:
            values[name] = _read_field(field, hints[name], given[name], notes)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise node.error(f"key {name!r} is missing")
    result = cls(**values)
    check(result, lambda name: given.get(name, node.moved(_join(node.path, name))))
    return result


def check(config, place=None) -> None:
    """Raise the first of `config.problems()`; `place` maps a field name to its node."""
    for name, message in getattr(config, "problems", tuple)():
        node = place(name) if place else Node(None, "", 0, f"{type(config).__name__}.{name}")
        raise node.error(message)


def did_you_mean(word: str, known) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read_field(field, hint, node: Node, notes):
    if field.metadata.get("read"):
        return field.metadata["read"](node, notes)
    value = _convert(hint, node, notes)
    choices = field.metadata.get("choices")
    if choices and value is not None and value not in choices:
        close = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise node.error(f"{value!r} is not one of {', '.join(map(repr, choices))}{close}")
    return value


def _convert(hint, node: Node, notes):
    """The node's value as type `hint`; an int is a float too, nothing else is converted."""
    origin, arguments, value = typing.get_origin(hint), typing.get_args(hint), node.value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        wanted = [item for item in arguments if item is not type(None)]
        for item in wanted[:-1]:
            if isinstance(value, _plain_type(item)) and not (isinstance(value, bool) and item is not bool):
                return _convert(item, node, notes)
        return _convert(wanted[-1], node, notes)
    if origin is tuple:
        if not isinstance(value, list):
            raise node.error(f"expected a list, found {_name_of(value)}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise node.error(f"expected {len(arguments)} values, found {len(value)}")
        items = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_convert(item, part, notes) for item, part in zip(items, value, strict=True))
    if dataclasses.is_dataclass(hint):
        return build(hint, node, notes)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise node.error(f"expected {_name_of_type(hint)}, found {_name_of(value)}")
    return value


def _plain_type(hint):
    origin = typing.get_origin(hint)
    if origin is tuple:
        return list
    if dataclasses.is_dataclass(hint):
        return dict
    return (int, float) if hint is float else hint


def _name_of_type(hint) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}.get(hint, str(hint))


def _name_of(value) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value)
