"""--help of a program, made from its flags: how it is called, sections, examples."""

import argparse
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema.flags import Flag
from mindspeed_mm.schema.node import one_line

_LARGE = 1e9  # a limit that no value in use comes near; it says nothing to a reader
_METAVARS = {int: "N", float: "X", str: "TEXT"}


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ConfigErrors."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(one_line(message.removeprefix("argument ")))


class _Layout(argparse.HelpFormatter):
    """Wraps paragraphs, and leaves lines that begin with a space as they are, such as examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        return "\n".join(line if line.startswith(" ") else wrapped(line, width) for line in lines)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(text, width).splitlines()


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` letters; a flag such as --no-save-optim is never broken."""
    return textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False)


def parser_of(
    flags: Sequence[Flag], ignored: Mapping[str, int], prog: str | None, description: str, epilog: str
) -> argparse.ArgumentParser:
    """A parser that reads all values as text; `Flag.read` parses them. ignored: flags without effect -> number of values.

    epilog: paragraphs, and lines that begin with spaces, which are not wrapped.
    """
    parser = _Parser(
        prog=prog,
        usage=_usage(flags),
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=_Layout,
        add_help=False,  # it would come before what is needed
    )
    sections: dict[str, Any] = {}
    if any(flag.required and flag.name.startswith("-") for flag in flags):
        sections["needed"] = parser.add_argument_group("needed")
    sections[""] = parser.add_argument_group("options")
    sections[""].add_argument("-h", "--help", action="help", help="show this help message and exit")
    for flag in flags:
        section = "needed" if flag.required else flag.section
        if not flag.name.startswith("-"):
            parser.add_argument(flag.name, **_options(flag))
            continue
        if section not in sections:
            sections[section] = parser.add_argument_group(section)
        sections[section].add_argument(flag.name, **_options(flag))
    if ignored:
        group = parser.add_argument_group("accepted without effect", " ".join(ignored))
        for name, count in ignored.items():
            kind: dict[str, Any] = {"nargs": count} if count else {"action": "store_const", "const": True}
            group.add_argument(name, dest=name, help=argparse.SUPPRESS, default=None, **kind)
    return parser


def _usage(flags: Sequence[Flag]) -> str:
    """What a call needs; a program may have a hundred flags, so the others are not listed."""
    words = [_positional(flag) for flag in flags if not flag.name.startswith("-")]
    words += [f"{flag.name} {metavar(flag)}" for flag in flags if flag.required and flag.name.startswith("-")]
    return textwrap.fill(
        " ".join(["%(prog)s", *words, "[flags]"]), 60, subsequent_indent=" " * 9, break_on_hyphens=False
    )


def _positional(flag: Flag) -> str:
    """An argument without a flag, as the usage line names it."""
    name = flag.name.upper() if flag.facts.choices else metavar(flag)
    return name + (" ..." if flag.facts.many else "")


def metavar(flag: Flag) -> str:
    """What --help shows for the value of a flag."""
    if flag.facts.choices:
        return "{" + ",".join(map(str, flag.facts.choices)) + "}"
    return flag.facts.metavar or flag.facts.unit.upper() or _METAVARS[flag.kind]


def _options(flag: Flag) -> dict[str, Any]:
    """Arguments of argparse's add_argument for a flag."""
    options: dict[str, Any] = {"help": _help(flag)}
    if flag.name.startswith("-"):
        options.update(dest=flag.name, default=None, required=flag.required)
    if flag.is_switch:
        options.update(action="store_const", const=True)
    else:
        options["metavar"] = metavar(flag)
        if flag.facts.many:  # the values of a flag that is given again are added
            options.update({"nargs": "+", "action": "extend"} if flag.name.startswith("-") else {"nargs": "+"})
    return options


def _help(flag: Flag) -> str:
    """Help, range and default in one sentence."""
    notes = [] if flag.is_switch else [flag.facts.range(_LARGE)]
    if not flag.is_switch and not flag.required and flag.default not in (None, "", ()) and "default" not in flag.help:
        notes.append(f"default {flag.default}")
    if flag.facts.published:
        notes.append(f"also {', '.join(flag.facts.published)}")
    note = ", ".join(note for note in notes if note)
    return (f"{flag.help} ({note})" if note else flag.help).strip().replace("%", "%%")
