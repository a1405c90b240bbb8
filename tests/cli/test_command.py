"""`mindspeed-mm`: every command is found and says what it does; one thing has one spelling; mistakes are one line."""

import itertools
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_mm.cli import main as cli
from mindspeed_mm.cli.main import COMMANDS, main, overview, programs
from mindspeed_mm.schema import flags_of
from mindspeed_mm.version import __version__

ROOT = Path(__file__).resolve().parents[2]
# What --load and --save mean is the same everywhere: what is read, what is written.
LIKE_LOAD_OR_SAVE = ("--load_dir", "--save_dir", "--save-path", "--output", "--load-dir", "--save-dir")


def test_every_command_has_a_program_and_a_line():
    assert {words.split()[0] for words in programs()} == set(COMMANDS)
    for name in COMMANDS:
        assert callable(cli.command(name))
        assert f"  {name} " in overview()
    assert max(map(len, overview().splitlines())) <= 120


@pytest.mark.parametrize("words", programs())
def test_help_has_sections_and_ends_with_examples(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ending:
        main([*words.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ending.value.code == 0
    assert lines[0].startswith(f"usage: mindspeed-mm {words}")
    last = lines[lines.index("examples:") + 1 :]
    assert last and all(line.startswith("  ") for line in last)
    assert any(f"mindspeed-mm {words}" in line for line in last)
    assert max(map(len, lines)) <= 80


def test_one_thing_has_one_spelling():
    spellings: dict[str, set[str]] = {}
    for program in programs().values():
        for flag in flags_of(program.flags):
            assert flag.name not in LIKE_LOAD_OR_SAVE
            for published in flag.facts.published:
                spellings.setdefault(published, set()).add(flag.name)
    names = {flag.name for program in programs().values() for flag in flags_of(program.flags)}
    assert all(len(found) == 1 for found in spellings.values())
    assert not names & set(spellings)


def test_published_spellings_and_dashes_for_underscores_are_taken():
    merge, train = programs()["merge"], programs()["train"]
    assert merge.parse(["--load_dir", "a", "--save_dir=b"]).values == merge.parse(["--load", "a", "--save", "b"]).values
    assert merge.parse(["--load-dir", "a", "--save", "b"]).values.load == "a"
    needed = ["--mm-model", "m", "--mm-data", "d", "--lr", "1", "--train-iters", "1"]
    assert (
        train.parse([*needed, "--clip-grad-ema-decay", "0.9", "--save_interval", "7"]).values.checkpoint.save_interval
        == 7
    )


def test_an_unknown_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["tran"])
    assert ending.value.code == 1
    expected = "error: tran: unknown command; did you mean 'train'? (mindspeed-mm --help lists them)\n"
    assert capsys.readouterr().err == expected


def test_the_overview_comes_without_torch_and_at_once():
    check = "import sys\nfrom mindspeed_mm.cli.main import main\ntry:\n    main(['--help'])\nfinally:\n    print(*sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    *shown, modules = result.stdout.splitlines()
    assert shown == overview().splitlines()
    assert not {"torch", "numpy", "megatron", "transformers", "av", "PIL", "matplotlib"} & set(modules.split())
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3  # seconds of a core


@pytest.mark.parametrize("program", ["mindspeed-mm", "pretrain_opensoraplan.py"])
def test_a_mistake_is_the_last_line_whoever_starts_the_ranks(tmp_path, program):
    """Before any rank is started where the ranks are started here."""
    start = ["-m", "mindspeed_mm", "train"] if program == "mindspeed-mm" else [str(ROOT / program)]
    flags = ["--mm-model", tmp_path / "no.json", "--mm-data", "d", "--lr", "1", "--train-iters", "1", "--nproc", "2"]
    command = [sys.executable, *start, *map(str, flags)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("", 1)
    assert result.stderr == f"error: {tmp_path / 'no.json'}: no such file\n"


@pytest.mark.parametrize("words", programs())
def test_help_fits_a_terminal_and_begins_with_what_is_needed(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = programs()[words].parser(f"mindspeed-mm {words}").format_help()
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines if re.search(r"--[\w-]*-$", line)] == [], "a flag is broken at a hyphen"
    assert "9223372036854775807" not in text
    needed = {flag.name for flag in flags_of(programs()[words].flags) if flag.required and flag.name.startswith("-")}
    headings = [line for line, below in itertools.pairwise(lines) if re.match(r"\w.*:$", line) and below[:2] == "  "]
    assert headings[0] in (("needed:",) if needed else ("options:", "positional arguments:"))
    first = text.partition(headings[0])[2].partition("\n\n")[0]
    assert all(re.search(rf"^  {name}\b", first, re.MULTILINE) for name in needed)


def test_the_overview_and_groups_fit_a_terminal(capsys):
    for words in ([], ["adapter"], ["config"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_it_runs_as_a_module_from_anywhere(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mindspeed_mm", "--version"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == __version__
