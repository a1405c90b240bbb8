"""The Slurm job, with stand-ins for srun and scontrol, on two "nodes" of this machine."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# srun starts its command once for each node, and ends with the largest exit code.
SRUN = """
shift
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
code=0
wait $first || code=$?
wait $second || code=$?
exit $code
"""
SCONTROL = """
case $1 in
    show) printf 'localhost.localdomain\\nnode2\\n' ;;
    requeue) echo "requeued $2" ;;
esac
"""
PYTHON = """
echo "$@"
if [ -n "$SAVED" ]; then echo "$SAVED" > "$SAVE/latest_checkpointed_iteration.txt"; fi
exit "${CODE:-0}"
"""


def submit(folder, **variables):
    """Runs the job as Slurm would."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": str(folder / "python"),
        "LOG_DIR": str(folder / "logs"),
        "DEVICE": "cpu",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SAVE": str(folder),
        "TRAIN_ITERS": "20",
        **variables,
    }
    command = ["bash", str(ROOT / "examples/slurm/train.sbatch"), "--lr", "1e-4"]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)


def test_each_node_runs_the_published_script_and_a_finished_job_ends(tmp_path):
    job = submit(tmp_path, SAVED="20")
    assert job.returncode == 0, job.stderr
    starts = [line for line in job.stdout.splitlines() if "pretrain_opensoraplan.py" in line]
    for rank in range(2):
        meeting = f"--nnodes 2 --node_rank {rank} --master_addr localhost.localdomain --master_port 12345 "
        assert sum(meeting in line for line in starts) == 1
    assert all(line.endswith(" --signal-ahead 600 --lr 1e-4") for line in starts)
    assert "requeued" not in job.stdout and "20 of 20 iterations are saved, exit code 0" in job.stdout


@pytest.mark.parametrize(("code", "saved"), [("0", "12"), ("75", "12"), ("75", "")])
def test_an_unfinished_job_comes_back_to_the_queue(tmp_path, code, saved):
    job = submit(tmp_path, SAVED=saved, CODE=code)
    assert job.returncode == 0 and job.stdout.endswith("requeued 17\n"), job.stdout + job.stderr
    assert f"{saved or 0} of 20 iterations are saved, exit code {code}; queued again" in job.stdout


def test_an_error_ends_the_job_with_its_code(tmp_path):
    job = submit(tmp_path, SAVED="12", CODE="1")
    assert job.returncode == 1 and "requeued" not in job.stdout


def test_what_is_needed_is_said(tmp_path):
    job = submit(tmp_path, SAVE="")
    assert job.returncode != 0 and "set SAVE to a folder that all nodes see" in job.stderr
