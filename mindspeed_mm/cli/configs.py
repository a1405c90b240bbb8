"""`mindspeed-mm config`: write configs, show what they mean and where each value is from, compare two."""

import dataclasses
import json
import sys
from collections.abc import Collection, Sequence
from typing import Any

from mindspeed_mm.cli import new_folder, parts
from mindspeed_mm.config import arguments, origins, resolve
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import Program, flag, flags_of

NAME = "mindspeed-mm config"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ShowFlags:
    files: tuple[str, ...] = flag((), "files", metavar="FILE", help="data, model, inference or tool JSON")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiffFlags:
    first: str = flag("", "first", metavar="A", help="a JSON")
    second: str = flag("", "second", metavar="B", help="a JSON of the same kind")


PROGRAMS = {
    "config init": new_folder.INIT,
    "config show": Program(
        flags=ShowFlags,
        description="Print what config files mean: every value, with the line it is from, and keys without effect.",
        remarks=f"`{NAME} show train FLAGS` and `{NAME} show sample FLAGS` print the whole "
        "configuration of a program, its flags included, and check it like the program.",
        examples=(
            f"{NAME} show model.json data.json",
            f"{NAME} show train --nproc 8 --mm-model model.json ...",
        ),
    ),
    "config diff": Program(
        flags=DiffFlags,
        description="Print where two config files mean different things, defaults and other spellings counted in.",
        remarks="Exit code 0: they mean the same; 1: they differ, or one is no valid config.",
        examples=(f"{NAME} diff old/model.json new/model.json",),
    ),
}


def config(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm config init|show|diff`."""
    parts.run_subcommand("config", PROGRAMS, argv, _run)


def _run(name: str, argv: Sequence[str]) -> None:
    run = {"config init": _init, "config show": _show, "config diff": _diff}[name]
    sys.exit(run(argv, f"mindspeed-mm {name}"))


def _init(argv: Sequence[str], prog: str) -> int:
    for file in new_folder.write(new_folder.INIT.parse(argv, prog).values):
        print(file)
    return 0


def _show(argv: Sequence[str], prog: str) -> int:
    shown = {"train": (arguments.TRAIN, resolve.run_config), "sample": (arguments.SAMPLE, resolve.sample_config)}
    if argv and argv[0] in shown:
        program, read = shown[argv[0]]
        _show_program(program, read, argv[1:], f"{prog} {argv[0]}")
        return 0
    for path in PROGRAMS["config show"].parse(argv, prog).values.files:
        _print_file(path)
    return 0


def _show_program(program: Program, read, argv: Sequence[str], prog: str) -> None:
    """The flags of a program with their origins, then its files."""
    given = program.parse(argv, prog)
    ranks = given.values.ranks
    config = read(argv, (ranks.processes or 1) * (ranks.nodes or 1) if ranks.processes else None, prog)
    print("flags:")
    for flag_ in flags_of(program.flags):
        value, is_known = _inside(config, flag_.path)
        if is_known and not (flag_.is_switch and value != flag_.constant):
            origin = _origin(flag_, value, given.given)
            print(f"  {'.'.join(flag_.path)} = {_text(value)}    # {origin}")
    for name in ("mm_model", "mm_data", "mm_tool"):
        path = getattr(given.values, name, None)
        if path is not None:
            _print_file(path)


def _inside(config: Any, path: Sequence[str]) -> tuple[Any, bool]:
    """The value at a path of fields, and whether the config has it: a job keeps some flags in its model."""
    for name in path:
        if not hasattr(config, name):
            return None, False
        config = getattr(config, name)
    return config, True


def _origin(flag_, value: Any, given: Collection[str]) -> str:
    if flag_.name in given:
        return flag_.name
    return "default" if value == flag_.default else f"computed; {flag_.name} sets it"


def _print_file(path: str) -> None:
    file = origins.read(path)
    print(f"{path} ({file.kind.name}):")
    for name, value in file.values.items():
        print(f"  {name} = {_text(value.value)}    # {value.origin}")
    for name, reason in file.unused.items():
        print(f"  {name} has no effect here: {reason}")


def _diff(argv: Sequence[str], prog: str) -> int:
    flags = PROGRAMS["config diff"].parse(argv, prog).values
    one, other = origins.read(flags.first), origins.read(flags.second)
    if one.kind is not other.kind:
        raise ConfigError(f"{flags.first} is a {one.kind.name} JSON, {flags.second} a {other.kind.name} JSON")
    missing = origins.Value("-", "not there")
    names = list({**one.values, **other.values})
    differ = [name for name in names if one.values.get(name, missing).value != other.values.get(name, missing).value]
    for name in differ:
        before, after = one.values.get(name, missing), other.values.get(name, missing)
        print(f"{name}: {_text(before.value)} ({before.origin}) -> {_text(after.value)} ({after.origin})")
    return 1 if differ else 0


def _text(value: Any) -> str:
    """A value as JSON writes it; a transform as Python does."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        return str(value)
