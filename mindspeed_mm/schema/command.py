"""Reads argv into a dataclass of flags: parsing, range checks and --help all come from its fields.

All programs read values equally strictly: ASCII digits, finite, in range. Every mistake is a ConfigError of one line
that begins with the flag.
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema.build import check, did_you_mean
from mindspeed_mm.schema.fields import Facts, Group, facts_of
from mindspeed_mm.schema.node import one_line
from mindspeed_mm.schema.text import read_float, read_int

Flags = TypeVar("Flags")
_METAVARS = {int: "N", float: "X", str: "TEXT"}
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


@dataclasses.dataclass(frozen=True, slots=True)
class Given(Generic[Flags]):
    """Parsed flags. flags: every flag's value by Megatron's name. without_effect: given flags that have no effect."""

    values: Flags
    flags: dict[str, Any]
    without_effect: list[str]


def parse(
    cls: type[Flags],
    argv: Sequence[str],
    *,
    prog: str | None = None,
    description: str | None = None,
    epilog: str | None = None,
    without_effect: Mapping[str, int] | None = None,
) -> Given[Flags]:
    """Reads argv into `cls`, a dataclass of `flag` fields and groups of them. --help prints and exits.

    without_effect: flags that are accepted and ignored -> number of values (0 or 1).
    """
    flags, ignored = list(flags_of(cls)), without_effect or {}
    parser = _parser(flags, ignored, prog, description, epilog)
    takes_value = {flag.name for flag in flags if not flag.is_switch and not flag.facts.many and flag.name[0] == "-"}
    takes_value.update(name for name, count in ignored.items() if count)
    options = {option for action in parser._actions for option in action.option_strings}
    found, unknown = parser.parse_known_args(_joined(argv, takes_value, options))
    if unknown:
        name = unknown[0].split("=")[0]
        what = "unknown flag" if name.startswith("-") else "unexpected argument"
        raise ConfigError(one_line(f"{name}: {what}{did_you_mean(name, options)} (--help lists them)"))
    given = {name: value for name, value in vars(found).items() if value is not None}
    values: dict[tuple[str, ...], Any] = {}
    by_name: dict[str, Any] = {}
    for flag in flags:
        _take(flag, given.get(flag.name), values, by_name)
    return Given(_filled(cls, values, flags), by_name, [name for name in ignored if name in given])


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


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ConfigErrors."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(one_line(message.removeprefix("argument ")))


def _parser(flags: list[Flag], ignored: Mapping[str, int], prog, description, epilog) -> argparse.ArgumentParser:
    """Reads all values as text; `Flag.read` parses them."""
    parser = _Parser(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
    sections: dict[str, Any] = {"": parser}
    for flag in flags:
        if flag.section not in sections:
            sections[flag.section] = parser.add_argument_group(flag.section)
        options: dict[str, Any] = {"help": _help(flag)}
        if flag.name.startswith("-"):
            options.update(dest=flag.name, default=None, required=flag.required)
        if flag.is_switch:
            options.update(action="store_const", const=True)
        else:
            metavar = flag.facts.metavar or flag.facts.unit.upper() or _METAVARS[flag.kind]
            options["metavar"] = "{" + ",".join(map(str, flag.facts.choices)) + "}" if flag.facts.choices else metavar
            options.update({"nargs": "+"} if flag.facts.many else {})
        sections[flag.section].add_argument(flag.name, **options)
    if ignored:
        group = parser.add_argument_group("accepted without effect", " ".join(ignored))
        for name, count in ignored.items():
            kind: dict[str, Any] = {"nargs": count} if count else {"action": "store_const", "const": True}
            group.add_argument(name, dest=name, help=argparse.SUPPRESS, default=None, **kind)
    return parser


def _help(flag: Flag) -> str:
    """Help, range and default in one sentence."""
    notes = [] if flag.is_switch else [flag.facts.range()]
    if not flag.is_switch and not flag.required and flag.default not in (None, "", ()) and "default" not in flag.help:
        notes.append(f"default {flag.default}")
    note = ", ".join(note for note in notes if note)
    return (f"{flag.help} ({note})" if note else flag.help).strip().replace("%", "%%")


def _joined(argv: Sequence[str], takes_value: set[str], options: set[str]) -> list[str]:
    """Joins `--flag`, `value` into `--flag=value`, so that argparse does not take -inf or -1e5 for a flag."""
    joined, rest = [], list(argv)
    while rest:
        item = rest.pop(0)
        if item in takes_value and rest and rest[0].split("=")[0] not in options:
            item = f"{item}={rest.pop(0)}"
        joined.append(item)
    return joined


def _take(flag: Flag, given: Any, values: dict[tuple[str, ...], Any], by_name: dict[str, Any]) -> None:
    """Stores the value of a flag: in `values` if it was given, in `by_name` always."""
    if flag.is_switch:
        by_name[flag.key] = given is not None
        if given is None:
            return
        if flag.path in values:
            names = [name for name in flag.facts.flags if by_name.get(name.lstrip("-").replace("-", "_"))]
            raise ConfigError(f"{' and '.join(names)}: give one of them")
        values[flag.path] = flag.constant
        return
    value = flag.default
    if given == [] and not flag.facts.many:
        given = "--"  # argparse takes both for the end of the flags, and leaves nothing
    if given is not None:
        value = tuple(map(flag.read, given)) if flag.facts.many else flag.read(given)
        values[flag.path] = value
    by_name[flag.key] = value


def _filled(cls: type[Flags], values: dict[tuple[str, ...], Any], flags: list[Flag]) -> Flags:
    """`cls` with these values; each group is checked."""
    top = {path[0]: value for path, value in values.items() if len(path) == 1}
    for field in dataclasses.fields(typing.cast(Any, cls)):
        if "group" in field.metadata:
            inside = {path[1]: value for path, value in values.items() if path[0] == field.name}
            top[field.name] = dataclasses.replace(typing.cast(Any, field.default), **inside)
            check(top[field.name], lambda name, group=field.name: _Place(flags, (group, name)))
    result = cls(**top)
    check(result, lambda name: _Place(flags, (name,)))
    return result


class _Place:
    """The place of a value that flags set; the counterpart of `Node` for a key."""

    def __init__(self, flags: list[Flag], path: tuple[str, ...]):
        self.flag = next((flag for flag in flags if flag.path == path), None)
        self.name = path[-1] if self.flag is None else self.flag.name

    def error(self, message: str) -> ConfigError:
        separator = ": " if self.flag is None or self.flag.is_switch else " "
        return ConfigError(one_line(f"{self.name}{separator}{message}"))
