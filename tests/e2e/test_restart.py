"""torchrun --max-restarts: the ranks that start again find each other, and the run's own checkpoint."""

import subprocess
import textwrap

from programs import ROOT, environment, free_port

PROGRAM = """
import os, signal, sys
import torch
import torch.distributed as dist
from mindspeed_mm.config.run import LaunchConfig
from mindspeed_mm.launch import start

platform, parallel = start(LaunchConfig(device="cpu", tensor_size=2, timeout_minutes=1))
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and parallel.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
value = torch.ones(1)
dist.all_reduce(value, group=parallel.tensor)
print(f"rank {parallel.rank}: {value.item():g} after {os.environ['TORCHELASTIC_RESTART_COUNT']} restarts", flush=True)
parallel.stop()
"""


def test_ranks_meet_again_after_one_was_killed(tmp_path, warm_python):
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + textwrap.dedent(PROGRAM))
    launcher = [str(warm_python), "-m", "torch.distributed.run", "--nproc_per_node", "2", "--max-restarts", "1"]
    result = subprocess.run(
        [*launcher, "--master_port", str(free_port()), "--monitor-interval", "0.2", str(program)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert result.returncode == 0, result.stderr
    assert "rank 0: 2 after 1 restarts" in result.stdout
    assert "rank 1: 2 after 1 restarts" in result.stdout
