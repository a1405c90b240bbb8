"""The environment of a run on NPUs is the same whoever starts it, and what a user sets wins."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_mm.platforms import variables

ROOT = Path(__file__).resolve().parents[2]


def found(device: str, timeout_minutes: float = 20, devices: Path = Path("/nowhere"), **given: str) -> dict[str, str]:
    environment = dict(given)
    variables.set_all(device, timeout_minutes, environment, devices)
    return environment


def test_a_run_on_npus_has_them_and_others_have_none(tmp_path):
    assert set(found("npu")) == {*variables.OF_NPUS, "HCCL_EXEC_TIMEOUT"}
    assert found("cpu") == found("cuda") == found("auto", devices=tmp_path) == {}
    (tmp_path / "davinci3").touch()
    assert found("auto", devices=tmp_path) == found("npu")
    assert found("cpu", devices=tmp_path) == {}


def test_what_a_user_sets_wins():
    environment = found(
        "npu", TASK_QUEUE_ENABLE="2", HCCL_EXEC_TIMEOUT="3600", SOCKET_IFNAME="eth7", GLOO_SOCKET_IFNAME="lo"
    )
    assert (environment["TASK_QUEUE_ENABLE"], environment["HCCL_EXEC_TIMEOUT"]) == ("2", "3600")
    assert (environment["HCCL_SOCKET_IFNAME"], environment["GLOO_SOCKET_IFNAME"]) == ("eth7", "lo")


@pytest.mark.parametrize("minutes", [1, 10, 20, 90])
def test_hccl_gives_up_before_torch(minutes):
    seconds = int(found("npu", minutes)["HCCL_EXEC_TIMEOUT"])
    assert seconds % 68 == 0 and 0 < seconds < max(69, 60 * minutes)


@pytest.mark.parametrize("page", ["ascend.md", "ascend_cn.md"])
def test_the_page_gives_the_defaults(page):
    rows = dict(
        re.findall(r"^\| `(\w+)` \| ([^|]+) \|", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert {name: rows[name] for name in variables.OF_NPUS} == variables.OF_NPUS


def test_a_rank_sets_them_before_torch_is_loaded():
    """torch_npu is loaded by `import torch` where it is installed."""
    program = (
        "import os, sys\n"
        "from mindspeed_mm import launch\n"
        "from mindspeed_mm.config.launch import LaunchConfig\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': print(os.environ['TASK_QUEUE_ENABLE'], os.environ['HCCL_EXEC_TIMEOUT']); sys.exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "launch.start(LaunchConfig(device='npu', timeout_minutes=20))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "1 1020\n", result.stderr
