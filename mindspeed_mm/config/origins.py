"""Every value of a config with the place that it comes from: a line of a file, or the default of its field."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from mindspeed_mm.config.kinds import Kind, kind_of
from mindspeed_mm.schema import Node, Notes, build, read_json
from mindspeed_mm.schema.fields import facts_of

DEFAULT = "default"


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A value and its origin: "line 12" of its file, or "default"."""

    value: Any
    origin: str


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file as the programs read it: values by dotted path, and keys without effect with the reason."""

    kind: Kind
    values: dict[str, Value]
    unused: dict[str, str]


def read(path: str) -> File:
    """Reads any config file. Raises ConfigError like the programs."""
    node = read_json(path)
    kind, notes = kind_of(node), Notes()
    node = kind.ours(node)
    config = build(kind.config, node, notes)
    return File(kind, dict(of_config(config, node)), notes.unused)


def of_config(config: Any, node: Node | None, path: str = "") -> Iterator[tuple[str, Value]]:
    """(path, value) of each field of a config, those of the dataclasses in it included. node: what it was read from."""
    keys = node.value if node is not None and isinstance(node.value, dict) else {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = next((keys[key] for key in (field.name, *facts_of(field).aliases) if key in keys), None)
        name = f"{path}.{field.name}" if path else field.name
        if dataclasses.is_dataclass(value):
            yield from of_config(value, inner, name)
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            items = inner.value if inner is not None else [None] * len(value)
            for number, (item, item_node) in enumerate(zip(value, items, strict=True)):
                yield f"{name}[{number}]", Value(item, _place(item_node))
        else:
            yield name, Value(value, _place(inner))


def _place(node: Node | None) -> str:
    if node is None:
        return DEFAULT
    return f"line {node.line}" if node.line else DEFAULT
