"""JSON Schema (draft 2020-12) of config dataclasses, for editors: what `build` reads, without the rules between keys."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from mindspeed_mm.schema.fields import MOST_FLOAT, MOST_INT, Facts, facts_of

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string"}


@dataclasses.dataclass(frozen=True, slots=True)
class Spellings:
    """What a dialect adds to a dataclass: properties, also in place of the fields' own, and keys that may stand for a field
    that has no default.
    """

    properties: Schema
    instead: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Writer:
    """Writes schemas of dataclasses, each once, as definitions that refer to each other."""

    def __init__(
        self,
        readers: Mapping[Callable, Callable[["Writer"], Schema]],
        dialects: Mapping[type, Callable[["Writer"], Spellings]],
    ):
        """readers: the `read` function of a field -> its schema. dialects: dataclass -> what a dialect adds to it."""
        self.definitions: dict[str, Schema] = {}
        self._readers, self._dialects = readers, dialects

    def file(self, cls: type, title: str) -> Schema:
        """The schema of a file with this dataclass."""
        reference = self.object(cls)
        return {"$schema": DRAFT, "title": title, **reference, "$defs": self.definitions}

    def object(self, cls: type) -> Schema:
        """Reference to the definition of a dataclass."""
        name = cls.__name__.lstrip("_")
        if name not in self.definitions:
            self.definitions[name] = {}  # so that a dataclass may hold itself
            self.definitions[name] = self._definition(cls)
        return {"$ref": f"#/$defs/{name}"}

    def _definition(self, cls: type) -> Schema:
        hints = typing.get_type_hints(cls)
        dialect = self._dialects[cls](self) if cls in self._dialects else Spellings({})
        properties: dict[str, Schema] = {}
        required, spellings = [], []
        for field in dataclasses.fields(typing.cast(Any, cls)):
            facts = facts_of(field)
            value = self._readers[facts.read](self) if facts.read else self.value(hints[field.name], facts)
            if field.default is not dataclasses.MISSING and isinstance(field.default, (bool, int, float, str)):
                value = {**value, "default": field.default}
            names = (field.name, *facts.aliases)
            properties |= dict.fromkeys(names, value)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                names = (*names, *([dialect.instead[field.name]] if field.name in dialect.instead else []))
                if len(names) == 1:
                    required.append(field.name)
                else:
                    spellings.append({"anyOf": [{"required": [name]} for name in names]})
        for key, reason in getattr(cls, "ACCEPTED", {}).items():
            properties.setdefault(key, {"description": f"no effect here: {reason}"})
        properties |= dialect.properties
        found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
        if cls.__doc__:
            found["description"] = " ".join(cls.__doc__.split())
        if required:
            found["required"] = required
        if spellings:
            found["allOf"] = spellings
        return found

    def value(self, hint: Any, facts: Facts) -> Schema:
        """The schema of a value of a type, in the range of its field."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            kinds = [self.value(item, facts) for item in arguments if item is not type(None)]
            return {"anyOf": [*kinds, *([{"type": "null"}] if type(None) in arguments else [])]}
        if origin is tuple and arguments[-1] is Ellipsis:
            return {"type": "array", "items": self.value(arguments[0], facts)}
        if origin is tuple:
            items = [self.value(item, facts) for item in arguments]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        if dataclasses.is_dataclass(hint):
            return self.object(typing.cast(type, hint))
        found: Schema = {"type": _PLAIN[hint]}
        if facts.choices:
            found["enum"] = list(facts.choices)
        if hint in (int, float):
            found |= _range(hint, facts)
        return found


def _range(kind: type, facts: Facts) -> Schema:
    """The limits of a number; without one of its own it fits a tensor."""
    names = {"minimum": facts.at_least, "exclusiveMinimum": facts.above, "maximum": facts.at_most}
    names["exclusiveMaximum"] = facts.below
    found = {name: limit for name, limit in names.items() if limit is not None}
    most = MOST_INT if kind is int else MOST_FLOAT
    if facts.at_most is None and facts.below is None:
        found["maximum"] = most
    if facts.at_least is None and facts.above is None:
        found["minimum"] = -most
    return found
