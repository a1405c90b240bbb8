"""`mindspeed-mm completion`: a script that completes commands, flags and choices in a shell."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from mindspeed_mm.errors import ConfigError, said_in_one_line
from mindspeed_mm.schema import Program, flag, flags_of

SHELLS = ("bash", "zsh", "fish", "tcsh")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CompletionFlags:
    shell: str = flag("", "shell", choices=SHELLS, help="shell to write for")


PROGRAMS = {
    "completion": Program(
        flags=CompletionFlags,
        description="Print a script that completes commands, flags and choices of mindspeed-mm in your shell.",
        examples=(
            'eval "$(mindspeed-mm completion bash)"    # in ~/.bashrc',
            "mindspeed-mm completion zsh > ~/.zfunc/_mindspeed-mm",
            "mindspeed-mm completion fish > ~/.config/fish/completions/mindspeed-mm.fish",
        ),
    )
}


def completion(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm completion`."""
    with said_in_one_line():
        flags = PROGRAMS["completion"].parse(sys.argv[1:] if argv is None else argv, prog).values
        try:
            import shtab
        except ImportError:
            raise ConfigError("completion needs the package shtab: pip install shtab") from None
        print(shtab.complete(_parser(), flags.shell))


def _parser() -> argparse.ArgumentParser:
    """All commands in the form that shtab reads."""
    from mindspeed_mm.cli.main import COMMANDS, NAME, programs

    root = argparse.ArgumentParser(prog=NAME)
    root.add_argument("--version", action="store_true", help="print the version")
    commands = root.add_subparsers()
    inner: dict[str, argparse._SubParsersAction] = {}
    for words, program in programs().items():
        name, *rest = words.split()
        summary = COMMANDS[name].summary
        if rest and name not in inner:
            inner[name] = commands.add_parser(name, help=summary).add_subparsers()
        parser = (
            inner[name].add_parser(rest[0], help=program.description)
            if rest
            else commands.add_parser(name, help=summary)
        )
        _add_flags(parser, program)
    return root


def _add_flags(parser: argparse.ArgumentParser, program: Program) -> None:
    import shtab

    files = {"DIR": shtab.DIRECTORY, "JSON": shtab.FILE, "FILE": shtab.FILE, "PATH": shtab.FILE, "DATA.TXT": shtab.FILE}
    for one in flags_of(program.flags):
        if one.is_switch:
            parser.add_argument(one.name, help=one.help.replace("%", "%%"), action="store_true")
            continue
        action = parser.add_argument(
            one.name,
            help=one.help.replace("%", "%%"),
            choices=one.facts.choices or None,
            nargs="+" if one.facts.many else None,
        )
        if one.facts.metavar in files:
            action.complete = files[one.facts.metavar]  # pyright: ignore[reportAttributeAccessIssue]  # where shtab looks for it
