"""Builds frozen dataclasses from nodes; unknown or missing keys, wrong types and values out of range are errors with a
place.

Only the dataclasses define keys; this file knows none.
"""

import dataclasses
import difflib
import itertools
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar, cast

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema.fields import facts_of, faults
from mindspeed_mm.schema.node import Node, join, name_of

Config = TypeVar("Config")


@dataclasses.dataclass(slots=True)
class Notes:
    """What the reader of a config found that is no error."""

    unused: dict[str, str] = dataclasses.field(default_factory=dict)  # path of a key without effect -> the reason
    remarks: list[str] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """For the log: one line that names the keys without effect, and the remarks."""
        names = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in self.unused))
        return [*([f"keys without effect here: {names}"] if names else []), *self.remarks]


class Place(Protocol):
    """The place of a value, a key's `Node` or a flag, and its error."""

    def error(self, message: str) -> ConfigError: ...


def build(cls: type[Config], node: Node, notes: Notes | None = None) -> Config:
    """Reads a node into the dataclass `cls`. Raises ConfigError with file, line and key for any mismatch.

    `cls.ACCEPTED` (key -> reason) lists keys of published files that have no effect here; each one found is added to
    `notes.unused`. `cls.problems()` yields (field, message) for impossible combinations.
    """
    if not isinstance(node.value, dict):
        raise node.error(f"expected an object, found {name_of(node.value)}")
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    given = _keys(cls, fields, node.value, notes)
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in given:
            values[name] = _read_field(field, hints[name], given[name], notes)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise node.error(f"key {name!r} is missing")
    result = cls(**values)
    check(result, lambda name: given.get(name, node.moved(join(node.path, name))))
    return result


def _keys(cls: type, fields: dict, items: dict[str, Node], notes: Notes | None) -> dict[str, Node]:
    """Nodes of an object, by the names of their fields."""
    spellings = {alias: name for name, field in fields.items() for alias in facts_of(field).aliases}
    accepted = getattr(cls, "ACCEPTED", {})
    given: dict[str, Node] = {}
    for key, item in items.items():
        name = spellings.get(key, key)
        if name in fields:
            if name in given:
                raise item.error(f"also given as {given[name].path!r}")
            given[name] = item
        elif key in accepted:
            if notes is not None:
                notes.unused[item.path] = accepted[key]
        else:
            raise item.error(f"unknown key{did_you_mean(key, [*fields, *spellings, *accepted])}")
    return given


def check(config: Any, place: Callable[[str], Place] | None = None) -> None:
    """Raises for the first value out of range or problem of `config.problems()`; `place` maps a field name to its
    node.
    """
    # in this order, since problems() may rely on values in range
    for name, message in itertools.chain(faults(config), _problems(config)):
        node = place(name) if place else Node(None, "", 0, f"{type(config).__name__}.{name}")
        raise node.error(message)


def _problems(config: Any) -> Iterator[tuple[str, str]]:
    yield from getattr(config, "problems", tuple)()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word[:80], list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read_field(field: dataclasses.Field, hint: Any, node: Node, notes: Notes | None) -> Any:
    facts = facts_of(field)
    if facts.read:
        return facts.read(node, notes)
    value = _convert(hint, node, notes)
    if facts.choices and value is not None and value not in facts.choices:
        close = did_you_mean(value, facts.choices) if isinstance(value, str) else ""
        raise node.error(f"{value!r} is not one of {', '.join(map(repr, facts.choices))}{close}")
    if fault := facts.fault(value):
        raise node.error(f"{node.plain()}: {fault}")
    return value


def _convert(hint: Any, node: Node, notes: Notes | None) -> Any:
    """The node's value as type `hint`. An int is accepted as a float; nothing else is converted."""
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
            raise node.error(f"expected a list, found {name_of(value)}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise node.error(f"expected {len(arguments)} values, found {len(value)}")
        items = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_convert(item, part, notes) for item, part in zip(items, value, strict=True))
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), node, notes)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 2**63:
            raise node.error("does not fit in 64 bits")
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise node.error(f"expected {_name_of_type(hint)}, found {name_of(value)}")
    return value


def _plain_type(hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        return list
    if dataclasses.is_dataclass(hint):
        return dict
    return (int, float) if hint is float else hint


def _name_of_type(hint: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}.get(hint, str(hint))
