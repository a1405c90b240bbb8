"""docs/operations.md promises nothing without a test or a row of `benchmarks/faults.py`, in both languages the same ones."""

import dataclasses
import inspect
import os
import re
import subprocess
from pathlib import Path

import pytest

from mindspeed_mm import atomic
from mindspeed_mm.checkpoint import lock, places
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.config.run import ReportConfig
from mindspeed_mm.files import integrity
from mindspeed_mm.parallel import descriptors
from mindspeed_mm.training.heartbeat import Heartbeat

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("operations.md", "operations_cn.md")
SCRIPTS = ("pretrain_opensoraplan1_5.sh", "inference_t2v_1_5.sh")


def page(document: str) -> str:
    return (ROOT / "docs" / document).read_text(encoding="utf-8")


def named(document: str) -> list[str]:
    return re.findall(r"`(test_\w+)`", page(document))


def rows_named(document: str) -> list[str]:
    """Faults that the page names as a row."""
    return re.findall(r'(?:row|行) "([^"]+)"', page(document).replace("\n", " "))


def test_every_test_that_the_page_names_exists():
    there = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    names = named("operations.md")
    assert len(names) > 12
    assert [name for name in names if name not in there] == []
    assert named("operations_cn.md") == names


def test_every_row_that_the_page_names_exists(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import faults

    there = {row.fault for make in faults.ROWS for row in make()}
    names = rows_named("operations.md")
    assert len(names) > 12
    assert [name for name in names if name not in there] == []
    assert rows_named("operations_cn.md") == names


@pytest.mark.parametrize("document", PAGES)
def test_every_line_of_a_table_names_what_shows_it(document):
    lines = [line for line in page(document).splitlines() if line.startswith("| ") and "---" not in line]
    without = [line for line in lines if not re.search(r'(`test_\w+`|(row|行) "[^"]+") \|$', line)]
    assert [line for line in without if not line.endswith(("| test |", "| 测试 |"))] == []


def default(config: type, name: str) -> float:
    return next(field.default for field in dataclasses.fields(config) if field.name == name)


NUMBERS = {
    r"`--hang-timeout-minutes` \| (\d+)": default(ReportConfig, "hang_minutes"),
    r"`--distributed-timeout-minutes` \| (\d+)": default(LaunchConfig, "timeout_minutes"),
    r"\| (\d+) [s秒]": inspect.signature(Heartbeat.__init__).parameters["gone_after_s"].default,
    r"(\d+) MiB ?(?:of a file that is written|或)": atomic._STRETCH / 2**20,
    r"(\d+) MiB ?(?:of one that is checked|。)": integrity._BLOCK / 2**20,
    r"(\d+) MiB ?(?:before weights|;不能)": places._PROBE_BYTES / 2**20,
    r"(\d+) \+ \d x (?:ranks|rank 数) ?(?:open|个)": descriptors._ALONE,
    r"\d+ \+ (\d) x (?:ranks|rank 数) ?(?:open|个)": descriptors._PER_RANK,
    r"(?:node|需) (\d+) \+ \d x (?:ranks|rank 数)[.。]": descriptors._STORE_ALONE,
    r"(?:node|需) \d+ \+ (\d) x (?:ranks|rank 数)[.。]": descriptors._STORE_PER_RANK,
    r"(?:up to|最多等) (\d+) [s秒]": lock._GRACE_S,
    r"(\d+) (?:s without a sign of life, by|秒没有更新)": lock._DEAD_S,
}


@pytest.mark.parametrize("document", PAGES)
@pytest.mark.parametrize("pattern", NUMBERS)
def test_numbers_of_the_page_are_those_of_the_programs(document, pattern):
    text = re.sub(r"\n(?!\|)", "" if "_cn" in document else " ", page(document))
    assert [float(found) for found in re.findall(pattern, text)][:1] == [NUMBERS[pattern]]


@pytest.fixture
def machine(tmp_path):
    """Environment in which Python, srun and scontrol are stand-ins; Python prints its process id and its arguments."""
    for name, text in {
        "python": 'echo "$$ $@"',
        "srun": 'exec "$@"',
        "scontrol": "echo node7; echo node8; echo node9; echo node10",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHON": str(tmp_path / "python"), "LOG_DIR": str(tmp_path / "logs"), "DEVICE": "cpu"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_launcher_takes_the_place_of_the_scripts_shell(machine, script):
    """So a signal to the process that a supervisor, a container or a user knows is one to the launcher."""
    command = ["bash", f"examples/opensoraplan1.5/{script}"]
    process = subprocess.Popen(command, env=machine, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=60)
    assert output.startswith(f"{process.pid} -m mindspeed_mm.torchrun --log-file ")


@pytest.mark.parametrize("document", PAGES)
def test_the_job_of_the_page_starts_the_script_on_each_node(machine, document):
    (job,) = re.findall(r"```bash\n(#SBATCH.*?)```", page(document), re.S)
    assert "#SBATCH --signal=USR1@600 " in job  # as early as --signal-ahead says
    variables = {**machine, "SLURM_NODEID": "3", "SLURM_JOB_NODELIST": "node[7-10]"}
    result = subprocess.run(
        ["bash", "-eu", "-c", job], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert (
        " --nnodes 4 --node_rank 3 --master_addr node7 --master_port 12345 pretrain_opensoraplan.py " in result.stdout
    )
    assert " --tensor-model-parallel-size 8 " in result.stdout and " --save /data/run1 " in result.stdout
    assert result.stdout.endswith(" --signal-ahead 600\n")


@pytest.mark.parametrize("document", PAGES)
def test_the_scripts_give_a_collective_the_minutes_that_the_page_says(machine, document):
    (minutes,) = re.findall(r"(?:scripts: |脚本:)(\d+)", page(document))
    command = ["bash", "examples/opensoraplan1.5/pretrain_opensoraplan1_5.sh"]
    result = subprocess.run(command, env=machine, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert f" --distributed-timeout-minutes {minutes} " in result.stdout


@pytest.mark.parametrize("document", PAGES)
def test_torchrun_takes_the_flags_that_the_page_gives(document):
    from torch.distributed import run

    (signals,) = re.findall(r"`--signals-to-handle (\S+)`", page(document))
    assert "`--shutdown-timeout " in page(document)
    found = run.parse_args(["--shutdown-timeout", "600", "--signals-to-handle", signals, "program.py"])
    assert found.shutdown_timeout == 600 and "SIGUSR1" in found.signals_to_handle
