"""Reads argv into a dataclass of flags: parsing, range checks and --help all come from its fields.

All programs read values equally strictly: ASCII digits, finite, in range. Every mistake is a ConfigError of one line
that begins with the flag.
"""

import argparse
import dataclasses
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema.build import check, did_you_mean
from mindspeed_mm.schema.flags import Flag, flags_of
from mindspeed_mm.schema.node import one_line
from mindspeed_mm.schema.usage import parser_of

Flags = TypeVar("Flags")


@dataclasses.dataclass(frozen=True, slots=True)
class Given(Generic[Flags]):
    """Parsed flags. flags: every flag's value by Megatron's name. given: names of those in the command line.
    without_effect: given flags that have no effect.
    """

    values: Flags
    flags: dict[str, Any]
    given: frozenset[str]
    without_effect: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Program(Generic[Flags]):
    """What a program takes, and what its --help says.

    flags: a dataclass of `flag` fields and groups of them. remarks: a paragraph after the flags. examples: command
    lines. without_effect: flags that are accepted and ignored -> number of values (0 or 1).
    """

    flags: type[Flags]
    description: str = ""
    remarks: str = ""
    examples: tuple[str, ...] = ()
    without_effect: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def parser(self, prog: str | None = None) -> argparse.ArgumentParser:
        """prog: name of the program in --help; default: the file that runs."""
        paragraphs = [self.remarks] if self.remarks else []
        if self.examples:
            paragraphs.append("\n".join(["examples:", *(f"  {line}" for line in self.examples)]))
        flags = list(flags_of(self.flags))
        return parser_of(flags, self.without_effect, prog, self.description, "\n\n".join(paragraphs))

    def parse(self, argv: Sequence[str], prog: str | None = None) -> Given[Flags]:
        """Reads argv. --help prints and exits. Raises ConfigError for any mistake."""
        flags, ignored = list(flags_of(self.flags)), self.without_effect
        parser = self.parser(prog)
        takes_value = {
            flag.name for flag in flags if not flag.is_switch and not flag.facts.many and flag.name[0] == "-"
        }
        takes_value.update(name for name, count in ignored.items() if count)
        options = {option for action in parser._actions for option in action.option_strings}
        found, unknown = parser.parse_known_args(_joined(argv, takes_value, options, _spellings(flags)))
        if unknown:
            name = unknown[0].split("=")[0]
            what = "unknown flag" if name.startswith("-") else "unexpected argument"
            raise ConfigError(one_line(f"{name}: {what}{did_you_mean(name, options)} (--help lists them)"))
        given = {name: value for name, value in vars(found).items() if value is not None}
        values: dict[tuple[str, ...], Any] = {}
        by_name: dict[str, Any] = {}
        for flag in flags:
            _take(flag, given.get(flag.name), values, by_name)
        without_effect = [name for name in ignored if name in given]
        return Given(_filled(self.flags, values, flags), by_name, frozenset(given), without_effect)


def parse(cls: type[Flags], argv: Sequence[str], *, without_effect: Mapping[str, int] | None = None) -> Given[Flags]:
    """Reads argv into `cls`; see `Program`."""
    return Program(flags=cls, without_effect=without_effect or {}).parse(argv)


def _spellings(flags: Sequence[Flag]) -> dict[str, str]:
    """Other spellings of flags -> their names: published ones, and dashes for underscores or the other way round."""
    found: dict[str, str] = {}
    for flag in flags:
        if flag.name.startswith("-"):
            for name in (flag.name, *flag.facts.published):
                bare = name.removeprefix("--")
                found |= dict.fromkeys((name, f"--{bare.replace('_', '-')}", f"--{bare.replace('-', '_')}"), flag.name)
    return found


def _joined(
    argv: Sequence[str], takes_value: Collection[str], options: Collection[str], spellings: Mapping[str, str]
) -> list[str]:
    """Puts each flag in the spelling that argparse knows, and joins `--flag`, `value` into `--flag=value`, so that
    argparse does not take -inf or -1e5 for a flag.
    """

    def known(item: str) -> str:
        name, equals, value = item.partition("=")
        return name if name in options else spellings.get(name, name)

    joined, rest = [], list(argv)
    while rest:
        item = rest.pop(0)
        name = known(item)
        item = name + item[len(item.partition("=")[0]) :]
        if item in takes_value and rest and known(rest[0]) not in options:
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
