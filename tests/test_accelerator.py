"""`benchmarks/accelerator.py`: a part's table, its failure, its limit."""

import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import accelerator

ROOT = Path(__file__).resolve().parents[1]
_TABLE = "print('seconds 3') or print('| | s |') or print('| --- | --- |') or print('| step | 1 |')"


def ran(tmp_path, code: str, **changes) -> tuple[int, str]:
    file = tmp_path / "program.py"
    file.write_text(code)
    made = accelerator.Part(
        **{"title": "A part", "program": str(file), "words": "", "small": "", "limit_s": 60, **changes}
    )
    return accelerator.run(made, "cpu", False, tmp_path / "out")[:2]


def test_a_part_gives_its_tables_alone(tmp_path):
    code, text = ran(tmp_path, _TABLE)
    assert code == 0
    assert text.startswith("## A part\n\n`") and text.endswith("\n\n| | s |\n| --- | --- |\n| step | 1 |")


def test_a_part_that_fails_or_hangs_is_named_with_its_last_lines(tmp_path):
    code, text = ran(tmp_path, f"{_TABLE}\nraise SystemExit('no memory')")
    assert code == 1 and "failed with exit code 1" in text and text.endswith("no memory\n```")
    code, text = ran(tmp_path, "import time\nprint('begun', flush=True)\ntime.sleep(60)", limit_s=2)
    assert code == 124 and text.endswith("```\nbegun\n```")


def test_a_part_whose_package_is_missing_is_left_out(tmp_path):
    code, text = ran(tmp_path, "raise SystemExit(1)", needs="no_such_package")
    assert (code, text) == (0, "## A part\n\nLeft out: it needs no_such_package, which is not installed.")


def test_device_and_folder_go_to_arguments_and_variables(tmp_path):
    show = "import os, sys\nprint(*sys.argv[1:], os.environ['WHERE'])"
    code, text = ran(tmp_path, show, words="--device {device}", variables="WHERE={out}/a")
    assert code == 0 and f"--device cpu {tmp_path}/out/a" in text


@pytest.mark.parametrize("part", accelerator.PARTS, ids=lambda part: part.title)
def test_every_program_of_a_part_exists(part):
    first = shlex.split(part.program.replace("bash ", ""))[0]
    assert first == "-m" or (ROOT / first).is_file()


def test_the_parts_fit_eight_minutes_where_none_takes_its_whole_limit():
    assert sum(part.limit_s for part in accelerator.PARTS) <= 720
