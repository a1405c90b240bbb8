"""A JSON value with its place, so that every error can name file, line and key."""

import dataclasses
import json
import re
from typing import Any

from mindspeed_mm.errors import ConfigError

MAX_DEPTH = 64  # depth of nested objects and lists; no config needs a fifth of it
_SHOWN = 400  # characters of an error; a value from outside may have millions
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """`value` holds dicts and lists of nodes, or a plain scalar."""

    value: Any
    file: str
    line: int  # 1-based; 0 if the value came from Python, not from a file
    path: str  # dotted, for example "predictor.num_layers[2]"

    def error(self, message: str) -> ConfigError:
        where = f"{self.file}:{self.line} " if self.line else (f"{self.file} " if self.file else "")
        return ConfigError(where + one_line(f"{self.path or '(top level)'}: {message}"))

    def plain(self):
        """The value without places: dicts, lists and scalars as from `json.loads`."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def moved(self, path: str) -> "Node":
        """The same value under another path, for dialects that move keys."""
        return dataclasses.replace(self, path=path)


def find(root: Node, path: str) -> Node:
    """The node at a dotted path, or its nearest existing parent, so that an error has a place."""
    node = root
    for key in path.split("."):
        if not isinstance(node.value, dict) or key not in node.value:
            return node.moved(join(root.path, path))
        node = node.value[key]
    return node


def node_from_python(value, path: str, file: str = "", depth: int = 0) -> Node:
    """Wraps plain Python values, so that a notebook's dict is checked like a file."""
    if depth > MAX_DEPTH:
        raise Node(None, file, 0, path[:80]).error(f"more than {MAX_DEPTH} objects and lists inside each other")
    if isinstance(value, dict):
        value = {str(key): node_from_python(item, join(path, str(key)), file, depth + 1) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        value = [node_from_python(item, f"{path}[{i}]", file, depth + 1) for i, item in enumerate(value)]
    return Node(value, file, 0, path)


def join(path: str, key: str) -> str:
    """The path of `key` in the object at `path`."""
    return f"{path}.{key}" if path else key


def one_line(text: str) -> str:
    """Makes outside text safe for a message: escapes control characters, shortens a long middle."""
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape", "backslashreplace").decode(), text)


def name_of(value: object) -> str:
    """Name of a value's type, for messages."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    return json.dumps(value) if value is None or isinstance(value, (str, int, float)) else repr(value)
