"""The launch scripts on several nodes: what they tell torchrun and HCCL, and what they refuse. Nothing is launched."""

import os
import subprocess
from pathlib import Path

import pytest

from mindspeed_mm.platforms import variables

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "opensoraplan1.5"


def run(script: str, folder: Path, **settings) -> subprocess.CompletedProcess:
    """Run a script with a `python` that prints its environment and its arguments."""
    python = folder / "python"
    python.write_text('#!/bin/sh\nenv | grep -E "^(SOCKET|HCCL|GLOO|TASK|CPU_A|PYTORCH|CUDA)" | sort\necho "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "LOG_DIR": str(folder / "logs")}
    environment |= {name: str(value) for name, value in settings.items()}
    return subprocess.run(["bash", str(SCRIPTS / script)], env=environment, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("script", ["pretrain_opensoraplan1_5.sh", "inference_t2v_1_5.sh"])
def test_two_nodes(script, tmp_path):
    settings = {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "10.0.0.1", "SOCKET_IFNAME": "eth7", "NPUS_PER_NODE": 8}
    result = run(script, tmp_path, DEVICE="npu", CANN_ENV="none", TP=8, **settings)
    assert result.returncode == 0, result.stderr
    *variables, arguments = result.stdout.splitlines()
    assert "--nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 12345" in arguments
    assert "--tensor-model-parallel-size 8" in arguments and "--sequence-parallel" in arguments
    assert "--distributed-timeout-minutes 20" in arguments
    found = dict(line.split("=", 1) for line in variables)
    assert found["SOCKET_IFNAME"] == "eth7"  # from here on variables.py
    assert found["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert (tmp_path / "logs").is_dir()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "--nnodes 1 --local-addr localhost"),
        ({"MASTER_PORT": 23456}, "--nnodes 1 --node_rank 0 --master_addr localhost --master_port 23456"),
    ],
)
def test_one_node_takes_a_free_port_unless_it_is_given_one(tmp_path, settings, words):
    result = run("inference_t2v_1_5.sh", tmp_path, DEVICE="npu", **settings)
    assert f"--nproc_per_node 8 {words} inference.py" in result.stdout
    assert f"--log-file {tmp_path}/logs/inference_" in result.stdout
    assert ("--master_port" in result.stdout) == bool(settings)


def test_global_batch_counts_all_nodes(tmp_path):
    result = run("pretrain_opensoraplan1_5.sh", tmp_path, DEVICE="npu", NNODES=4, MASTER_ADDR="10.0.0.1", TP=8, MBS=2)
    assert "--global-batch-size 8" in result.stdout


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"NNODES": 2}, "MASTER_ADDR localhost with NNODES 2: set it to the address of node 0"),
        ({"NNODES": 2, "NODE_RANK": 2, "MASTER_ADDR": "10.0.0.1"}, "NODE_RANK 2: must be 0 to 1"),
    ],
)
def test_nodes_that_cannot_meet(tmp_path, settings, words):
    result = run("inference_t2v_1_5.sh", tmp_path, **settings)
    assert result.returncode == 1 and words in result.stderr


def test_settings_of_the_environment_win(tmp_path):
    result = run("inference_t2v_1_5.sh", tmp_path, DEVICE="npu", HCCL_EXEC_TIMEOUT=3600, TASK_QUEUE_ENABLE=2)
    assert "HCCL_EXEC_TIMEOUT=3600" in result.stdout and "TASK_QUEUE_ENABLE=2" in result.stdout


def test_every_variable_of_the_scripts_is_explained():
    documents = [SCRIPTS.parents[1] / "docs" / name for name in ("ascend.md", "ascend_cn.md")]
    text = (SCRIPTS / "common.sh").read_text()
    exported = {line.split("export ")[1].split("=")[0] for line in text.splitlines() if "export " in line}
    exported |= {*variables.OF_NPUS, "HCCL_EXEC_TIMEOUT", "SOCKET_IFNAME"}
    assert len(exported) > 10
    for document in documents:
        missing = {name for name in exported if f"`{name}`" not in document.read_text(encoding="utf-8")}
        assert not missing, (document.name, missing)
