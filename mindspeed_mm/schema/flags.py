"""The flags of a program, as the fields of its dataclass say them."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema.build import did_you_mean
from mindspeed_mm.schema.fields import Facts, Group, facts_of
from mindspeed_mm.schema.node import one_line
from mindspeed_mm.schema.text import read_float, read_int

_READERS = {int: read_int, float: read_float}


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """A flag of a program, or a positional argument.

    path: names of the fields that lead to its value. kind: type of one value: bool (a switch), int, float or str.
    constant: value that a switch sets.
    """

    name: str
    path: tuple[str, ...]
    kind: type
    facts: Facts
    default: Any
    section: str
    required: bool
    constant: Any = None
    help: str = ""

    @property
    def is_switch(self) -> bool:
        return self.constant is not None

    @property
    def key(self) -> str:
        """Its name in `Given.flags`, as in argparse and Megatron."""
        return self.name.lstrip("-").replace("-", "_")

    def read(self, text: str) -> Any:
        """Parses the flag's value; ConfigError if it is not allowed."""
        try:
            value = _READERS.get(self.kind, str)(text)
            fault = self.facts.fault(value)
        except ValueError as error:
            value, fault = text, str(error)
        if isinstance(value, str) and fault is None:
            if any("\ud800" <= character <= "\udfff" for character in value):
                fault = "is not UTF-8"
            elif not value and not self.facts.may_be_empty:
                fault = "must not be empty"
        if fault is None and self.facts.choices and value not in self.facts.choices:
            known = ", ".join(map(repr, self.facts.choices))
            close = did_you_mean(text, self.facts.choices) if self.kind is str else ""
            fault = f"must be one of {known}{close}"
        if fault is not None:
            raise ConfigError(one_line(f"{self.name} {text or repr(text)}: {fault}"))
        return value


def flags_of(cls: type) -> Iterator[Flag]:
    """Every flag of a dataclass and of its groups."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        chosen: Group | None = field.metadata.get("group")
        if chosen is None:
            yield from _of_field(field, hints[field.name], field.default, (), "")
            continue
        inner_hints = typing.get_type_hints(type(field.default))
        for inner in dataclasses.fields(typing.cast(Any, field.default)):
            if inner.name in chosen.without or (chosen.only is not None and inner.name not in chosen.only):
                continue
            default, required = getattr(field.default, inner.name), inner.name in chosen.required
            hint = inner_hints[inner.name]
            yield from _of_field(inner, hint, default, (field.name,), chosen.section, required)


def _of_field(
    field: dataclasses.Field, hint: Any, default: Any, above: tuple[str, ...], section: str, required: bool = False
) -> Iterator[Flag]:
    facts = facts_of(field)
    kind = _kind(hint)
    for (name, constant), text in zip(facts.flags.items(), facts.help.split("\n"), strict=False):
        if constant is None and kind is bool:
            constant = not default
        yield Flag(
            name=name,
            path=(*above, field.name),
            kind=kind,
            facts=facts,
            default=default,
            section=facts.section or section,
            required=required or facts.required,
            constant=constant,
            help=text,
        )


def _kind(hint: Any) -> type:
    """The type of one value: int for `int | None` and for `tuple[int, ...]`."""
    arguments = [item for item in typing.get_args(hint) if item not in (type(None), Ellipsis)]
    if typing.get_origin(hint) in (tuple, typing.Union, types.UnionType):
        return _kind(arguments[0])
    return hint
