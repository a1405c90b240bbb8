"""Every flag of every program: a bad value is one line that begins with the flag, before anything is started."""

import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_mm.cli import main as cli
from mindspeed_mm.config.arguments import MEANINGLESS
from mindspeed_mm.config.autoencoder import AutoencoderTrainingFlags, EvaluationFlags
from mindspeed_mm.config.run import ExtractionFlags, RunFlags
from mindspeed_mm.config.sample import JobFlags, ServeFlags
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import flags_of, parse

PROGRAMS = (RunFlags, ExtractionFlags, JobFlags, ServeFlags, AutoencoderTrainingFlags, EvaluationFlags)
NEVER = (
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1e999",
    "1e-999",
    "1_0",
    "١٢",
    "0x10",
    "1,5",
    "",
    "two",
    " 1",
    "1 ",
    "+1",
    "9" * 40,
)
each_program = pytest.mark.parametrize("program", PROGRAMS)


def numbers(program):
    return [flag for flag in flags_of(program) if flag.kind in (int, float)]


def refusal(program, *argv) -> str:
    required = [f"{flag.name}=1" for flag in flags_of(program) if flag.required and flag.name not in argv]
    required += ["1" for flag in flags_of(program) if not flag.name.startswith("-")]
    with pytest.raises(ConfigError) as error:
        parse(program, [*required, *argv])
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    return message


def is_refused(flag, value) -> bool:
    """Whether the flag refuses the value in a line that begins with both; `Flag.read` is what `parse` calls."""
    with pytest.raises(ConfigError) as error:
        flag.read(value)
    return str(error.value).startswith(f"{flag.name} {value or repr(value)}: ") and "\n" not in str(error.value)


@each_program
def test_a_number_is_finite_and_written_as_one(program):
    for flag in numbers(program):
        for value in (*NEVER, *(["1.5", "1e3"] if flag.kind is int else [])):
            assert is_refused(flag, value), value
        assert refusal(program, flag.name, "-inf").startswith(f"{flag.name} -inf: ")


@each_program
def test_a_number_has_a_range_and_what_is_outside_is_refused(program):
    for flag in numbers(program):
        facts = flag.facts
        low = facts.at_least if facts.above is None else facts.above
        assert low is not None, f"{flag.name} has no least value"
        high = facts.below if facts.at_most is None else facts.at_most
        largest = high or (2**31 - 1 if flag.kind is int else 3e38)
        for value in (low - 1, *([low] if facts.at_least is None else []), largest * 2 + 2):
            assert is_refused(flag, str(int(value)) if flag.kind is int else repr(float(value))), (flag.name, value)


def test_text_is_not_empty_and_choices_are_known():
    for program in PROGRAMS:
        for flag in flags_of(program):
            if flag.kind is str and not flag.is_switch:
                assert flag.facts.may_be_empty or "must not be empty" in refusal(program, flag.name, "")
                assert "is not UTF-8" in refusal(program, flag.name, "a\udcff")
                if flag.facts.choices:
                    assert "must be one of" in refusal(program, flag.name, "surely_unknown")


def test_every_flag_has_a_name_of_its_own_and_says_what_it_is():
    for program in PROGRAMS:
        names = [flag.name for flag in flags_of(program)]
        assert len(names) == len(set(names))
        assert not set(names) & set(MEANINGLESS)
        assert not [flag.name for flag in flags_of(program) if not flag.help]


def test_negative_numbers_and_exponents_reach_the_flag_they_follow():
    assert refusal(RunFlags, "--lr", "-1e-5") == "--lr -1e-5: must be above 0 and at most 1000"
    argv = ["--mm-model", "m", "--mm-data", "d", "--lr", "1e-5", "--train-iters", "1"]
    assert parse(RunFlags, argv).values.optimizer.lr == 1e-5
    assert "expected one argument" in refusal(RunFlags, "--lr", "--min-lr", "1")
    assert "expected one argument" in refusal(RunFlags, "--lr")


def test_what_is_missing_unknown_or_said_twice():
    with pytest.raises(ConfigError, match="required: --mm-model, --mm-data"):
        parse(RunFlags, ["--lr", "1", "--train-iters", "1"])
    assert "did you mean '--min-lr'" in refusal(RunFlags, "--min-lrr", "1")
    assert "stray: unexpected argument" in refusal(RunFlags, "stray")
    given = parse(JobFlags, ["--mm-model", "a", "--seed", "1", "--seed", "2"])
    assert given.values.seed == 2  # a later flag counts: launch scripts append
    assert refusal(JobFlags, "--fp16", "--bf16") == "--bf16 and --fp16: give one of them"


def test_the_flags_as_given_keep_megatrons_names():
    argv = ["--mm-model", "m", "--mm-data", "d", "--lr", "1e-4", "--train-iters", "3", "--no-save-optim", "--bf16"]
    given = parse(RunFlags, [*argv, "--hidden-size", "3072", "--swiglu"], without_effect=MEANINGLESS)
    assert given.without_effect == ["--hidden-size", "--swiglu"]
    assert {
        "lr": 1e-4,
        "no_save_optim": True,
        "bf16": True,
        "fp16": False,
        "clip_grad": 1.0,
    }.items() <= given.flags.items()
    assert not given.values.checkpoint.save_optimizer and given.values.dtype == "bf16"


def test_the_flags_of_tools_are_as_strict():
    programs = [program.flags for program in cli.programs().values() if program.flags not in PROGRAMS]
    assert len(programs) >= 7
    for program in programs:
        test_a_number_is_finite_and_written_as_one(program)
        test_a_number_has_a_range_and_what_is_outside_is_refused(program)
        assert not [flag.name for flag in flags_of(program) if not flag.help]


def test_help_of_every_program_starts_at_once():
    """Neither torch nor megatron-core nor numpy is imported before there is something to compute."""
    check = """
import contextlib, io, runpy, sys
from mindspeed_mm.cli import main
shown = 0
def helps(program, *arguments):
    global shown
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        program(*arguments)
    shown += "examples:" in text.getvalue()
for words in main.programs():
    helps(main.main, [*words.split(), "--help"])
for door in DOORS:
    sys.argv = [door, "--help"]
    helps(lambda: runpy.run_path(door, run_name="__main__"))
print(shown, sorted({"torch", "megatron", "numpy", "transformers", "av", "PIL", "matplotlib"} & set(sys.modules)))
"""
    root = Path(__file__).resolve().parents[2]
    doors = ["pretrain_opensoraplan.py", "inference.py", "examples/opensoraplan1.5/convert_mm_to_ckpt.py"]
    doors += [f"tools/{path.name}" for path in root.glob("tools/*.py")]
    check = check.replace("DOORS", repr(doors))
    result = subprocess.run([sys.executable, "-c", check], cwd=root, capture_output=True, text=True)
    assert result.stdout.strip() == f"{len(cli.programs()) + len(doors)} []", result.stdout + result.stderr
