"""Starting up on NPUs: order of imports, errors without CANN, devices, memory, random numbers, profiler."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import cases_platform
import pytest
from simulation import stand_ins, wheel

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms import npu as npu_platform
from mindspeed_mm.platforms.npu import NpuPlatform

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = ["--tensor-model-parallel-size", "2", "--lr", "1e-3"]


def start_up(libraries: str, *folders: Path) -> dict:
    """What start_up.py prints in a fresh process that finds these folders' packages."""
    paths = [ROOT, HERE, ROOT / "tests" / "optim", *folders]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-W", "ignore", str(HERE / "start_up.py"), libraries, *FLAGS]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.skipif(not metadata.version("megatron-core").startswith("0.16."), reason="MindSpeed patches 0.16 only")
def test_mindspeed_is_imported_in_order_and_sees_no_flag_of_ours(npu):
    packages = wheel.install()
    torch = Path(importlib.util.find_spec("torch").origin).parent
    libraries = stand_ins.libraries(packages / "torch_npu", torch)
    found = start_up(str(libraries), packages, HERE / "mindspeed_stand_in")
    assert found["torch_npu"] and found["transfer_to_npu"] and not found["megatron.core"]
    assert len(found["argv"]) == 1 and found["argv after"] == FLAGS
    assert found["allow_hf32"] == [True, True]
    assert found["kernel"] == "kernel"


def test_without_cann_one_line_says_what_to_do(npu):
    error = start_up("none", wheel.install())["error"]
    assert error.startswith("--device npu: torch_npu cannot be imported (")
    assert ".so" in error and error.endswith("and source CANN's set_env.sh first")
    assert "\n" not in error


def test_without_torch_npu_the_same_line():
    error = start_up("none")["error"]
    assert error.startswith("--device npu: torch_npu cannot be imported (No module named 'torch_npu')")


def test_devices_memory_and_random_numbers(npu):
    facts = npu.one(cases_platform.facts)
    assert (facts.device, facts.current, facts.tensor) == ("npu:3", 3, "npu:3")
    assert facts.peak >= 4 << 20
    first, changed, restored = facts.seeds
    assert first == restored != changed == 17
    assert facts.state_device == "cpu"  # so that a checkpoint loads anywhere
    assert facts.error == "--nproc_per_node: process 8 has no NPU, this node has 8"
    assert facts.cuda_means_npu


def test_the_profiler_runs(npu, tmp_path):
    npu.one(cases_platform.profiled, str(tmp_path))
    assert list(tmp_path.rglob("*"))


def test_float64_on_an_npu_is_an_error(npu):
    with pytest.raises(AssertionError, match="float64"):
        npu.one(cases_platform.float64, 1)


def test_mindspeed_is_left_out_beside_a_megatron_core_that_it_does_not_patch(monkeypatch):
    monkeypatch.setattr(npu_platform.metadata, "version", lambda name: "0.19.2")
    monkeypatch.setattr(npu_platform.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(
        ConfigError, match=r"--mindspeed on: .*0\.19\.2 is installed; pip install megatron-core==0\.16\.1"
    ):
        NpuPlatform("on")._import_mindspeed()
    NpuPlatform("auto")._import_mindspeed()
    assert "mindspeed.megatron_adaptor" not in sys.modules
