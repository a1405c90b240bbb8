"""Commands that README and docs show are commands that exist, and those of the tutorial run in its order."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from documented import PAGES, ROOT, Documented, commands, doors
from programs import environment

from mindspeed_mm.cli.main import programs
from mindspeed_mm.errors import ConfigError

ALL = [entry for page in PAGES for entry in commands(page)]


@cache
def fault(entry: Documented) -> str | None:
    """What the real reader of flags says of a command."""
    if entry.program not in programs():
        return f"no command {entry.program!r}"
    flags = [flag.replace("|", "") if "|" in flag else flag for flag in entry.flags]
    try:
        programs()[entry.program].parse(flags)
    except SystemExit:
        return None  # --help
    except ConfigError as error:
        if re.search("no such (file|directory)|does not exist", str(error)):
            return None  # a page's files are its reader's
        is_short = re.search("required|give one of them|give --|expected (at least )?one argument", str(error))
        is_placeholder = any(re.search(rf"\b{re.escape(flag)}\b", str(error)) for flag in flags if flag.isupper())
        is_list = any("|" in flag for flag in entry.flags)
        return None if not entry.is_whole and (is_short or is_placeholder or is_list) else str(error)
    return None


def test_many_commands_are_found():
    assert len(ALL) > 100
    assert len({entry.program for entry in ALL}) > 15
    assert len(doors()) >= 10


@pytest.mark.parametrize("page", sorted({entry.page for entry in ALL}))
def test_the_programs_take_the_flags_that_a_page_gives(page):
    faults = {entry.text: said for entry in ALL if entry.page == page and (said := fault(entry))}
    assert faults == {}


@pytest.mark.parametrize(
    "line",
    [
        "mindspeed-mm trian --lr 1",
        "mindspeed-mm merge --load a --save b --emma",
        "python tools/plot_run.py run1 --smooth 2",
        "torchrun -m mindspeed_mm sample --mm-model a --cfg-mode both",
        "mindspeed-mm merge --load a",
    ],
)
def test_a_command_that_has_drifted_is_found(tmp_path, monkeypatch, line):
    page = tmp_path / "page.md"
    page.write_text(f"```bash\n{line}\n```\n")
    monkeypatch.setattr("documented.ROOT", tmp_path)
    (entry,) = commands(page)
    assert fault(entry) is not None


@pytest.fixture(scope="module")
def machine(tmp_path_factory, warm_python):
    """A folder to run in, and the environment: `mindspeed-mm` is this checkout's, and two runs are off the network."""
    folder = tmp_path_factory.mktemp("commands")
    for name in ("examples", "configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    command = folder / "mindspeed-mm"
    command.write_text(f'#!/bin/sh\nexec "{warm_python}" -m mindspeed_mm "$@"\n')
    command.chmod(0o755)
    path = f"{folder}{os.pathsep}{warm_python.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return folder, {**environment(), "PATH": path, "PYTHONPATH": str(ROOT)}


def blocks(name: str) -> list[str]:
    return re.findall(
        r"^```bash\n(.*?)^```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def run(machine, command: str) -> str:
    folder, variables = machine
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
    return result.stdout


@pytest.mark.docs
def test_the_tutorial_runs_from_its_first_command_to_its_last(machine):
    folder = machine[0]
    for block in blocks("tutorial.md"):
        run(machine, block.replace("pip install -e .\n", ""))
    for made in (
        "check/samples.png",
        "features",
        "run/metrics.jsonl",
        "curves.png",
        "merged/model_ema.pt",
        "samples/index.html",
    ):
        assert (folder / "out" / made).exists(), made
