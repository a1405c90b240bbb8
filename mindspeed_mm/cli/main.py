"""`mindspeed-mm COMMAND`: finds the command; its file and what it needs are imported only then."""

import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from mindspeed_mm.errors import ConfigError, said_in_one_line
from mindspeed_mm.schema import Program, did_you_mean
from mindspeed_mm.version import __version__

NAME = "mindspeed-mm"


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """A command: its section and line in --help, and the file of `cli/` that holds it."""

    section: str
    summary: str
    file: str


COMMANDS = {
    "train": Command("run", "train the denoiser, or go on with a run", "training"),
    "sample": Command("run", "sample videos from prompts", "sampling"),
    "serve": Command("run", "a web page and an HTTP API that sample videos", "sampling"),
    "evaluate": Command("run", "measure videos and weights, and put two runs side by side", "evaluating"),
    "plan": Command("run", "say which layouts fit the memory of some cards", "planning"),
    "plot": Command("run", "draw the curves of runs", "plot"),
    "check-data": Command("data", "say what a list drops and why, and try its files", "check_data"),
    "extract": Command("data", "encode a list once, for training without encoders", "training"),
    "merge": Command("weights", "merge a run's shards into one file", "weights"),
    "split": Command("weights", "split weights over tensor-parallel ranks", "weights"),
    "inspect": Command("weights", "say what a checkpoint holds and how it fits a config", "weights"),
    "adapter": Command("weights", "merge, extract and convert adapters (LoRA)", "adapters"),
    "export": Command("weights", "write one folder for T2VPipeline, or for diffusers", "weights"),
    "convert-vae": Command("weights", "convert the weights of an autoencoder", "weights"),
    "train-vae": Command("autoencoder", "train or finetune the autoencoder", "training"),
    "eval-vae": Command("autoencoder", "measure what the autoencoder keeps", "training"),
    "doctor": Command("set-up", "say what this machine has for a run, and what it lacks", "doctor"),
    "config": Command("set-up", "write, show and compare configs", "configs"),
    "schema": Command("set-up", "print the JSON Schema of a kind of config, for editors", "schemas"),
    "completion": Command("set-up", "print a script that completes commands in a shell", "completion"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """The console script. argv: default: the command line's."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        sys.exit(0 if words else 1)
    if words[0] == "--version":
        print(__version__)
        return
    with said_in_one_line():
        function = command(words[0])
    try:
        function(words[1:], f"{NAME} {words[0]}")
    except BrokenPipeError:  # the reader of stdout has gone, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)


def command(name: str) -> Callable[[Sequence[str], str], None]:
    """The function of a command: takes its flags, and its name for --help. Raises ConfigError for an unknown name."""
    if name not in COMMANDS:
        raise ConfigError(f"{name}: unknown command{did_you_mean(name, COMMANDS)} ({NAME} --help lists them)")
    return getattr(_module(name), name.replace("-", "_"))


def programs() -> dict[str, Program]:
    """Every program by the words that start it, such as "train" or "config show"."""
    found: dict[str, Program] = {}
    for name in COMMANDS:
        found |= {words: program for words, program in _module(name).PROGRAMS.items() if words.split()[0] == name}
    return found


def _module(name: str):
    return importlib.import_module(f"mindspeed_mm.cli.{COMMANDS[name].file}")


def overview() -> str:
    """--help of the whole."""
    lines = [
        f"usage: {NAME} COMMAND [flags]",
        "",
        "Open-Sora Plan v1.5: text-to-video training and sampling on Ascend NPUs, CUDA",
        "GPUs and CPUs.",
    ]
    for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
        lines += ["", f"{section}:"]
        lines += [f"  {name:13} {entry.summary}" for name, entry in COMMANDS.items() if entry.section == section]
    lines += [
        "",
        f"{NAME} COMMAND --help lists the flags of a command, with examples.",
        f"{NAME} --version says the version.",
    ]
    return "\n".join(lines)
