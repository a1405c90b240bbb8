"""What several commands have in common: subcommands, and the flags of commands that write weights."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mindspeed_mm.errors import ConfigError, said_in_one_line
from mindspeed_mm.schema import Program, did_you_mean, flag
from mindspeed_mm.schema.usage import wrapped

DTYPES = ("fp32", "bf16", "fp16")
WEIGHTS = (
    "merged .pt or .safetensors file, index of several, folder of them, a Megatron directory of any TP size, or a hub's "
    "repository (org/name@REVISION:PART)"
)


def run_subcommand(
    group: str,
    programs: Mapping[str, Program],
    argv: Sequence[str] | None,
    run: Callable[[str, Sequence[str]], None],
) -> None:
    """Runs run("GROUP WORD", its arguments) for `mindspeed-mm GROUP WORD ...`; --help, or nothing, lists the words.

    programs: those of the group, by "GROUP WORD". argv: default: the command line's. Our errors are one line.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    known = [name.split()[1] for name in programs]
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: mindspeed-mm {group} {'|'.join(known)} [flags]\n")
        for name, program in programs.items():
            first, *rest = wrapped(program.description, 60).splitlines()
            print("\n".join([f"  {name.split()[1]:14} {first}", *(f"{'':17}{line}" for line in rest)]))
        print(f"\nmindspeed-mm {group} {known[0]} --help lists the flags of one of them, with examples.")
        sys.exit(0 if words else 1)
    with said_in_one_line():
        name = f"{group} {words[0]}"
        if name not in programs:
            raise ConfigError(f"{name}: expected {', '.join(known)}{did_you_mean(words[0], known)}")
        run(name, words[1:])


def merged_format() -> Any:
    """The flag --format of a command that writes whole weights."""
    return flag("pt", "--format", choices=("pt", "safetensors"), help="format of the result")


def max_shard_gb() -> Any:
    """The flag --max-shard-gb of a command that writes whole weights; see `max_shard_bytes`."""
    return flag(
        None,
        "--max-shard-gb",
        at_least=1e-3,
        at_most=1e6,
        unit="GB",
        help="safetensors: several files of at most this size, and an index; default: one file",
    )


def max_shard_bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * 1e9)
