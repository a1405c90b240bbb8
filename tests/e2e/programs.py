"""Running the entry points as a user does."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOSS = re.compile(r"iteration +(\d+)/\d+ .* loss: ([0-9.E+-]+) .* grad norm: ([0-9.]+)")


def command(program: str, flags: list, ranks: int = 1) -> list[str]:
    """The command line of a program on `ranks` processes of the CPU."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(free_port())]
    return [*launcher, str(ROOT / program), "--device", "cpu", *map(str, flags)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def environment() -> dict[str, str]:
    """One thread per rank, and nothing of this process's own ranks."""
    mine = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**mine, "OMP_NUM_THREADS": "1"}


def run(program: str, flags: list, ranks: int = 1, timeout_s: float = 180) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(program, flags, ranks), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout_s
    )


def run_until(program: str, flags: list, ranks: int, mark: str) -> str:
    """Run until a line of the output holds `mark`, then kill every process; returns the output so far."""
    process = subprocess.Popen(
        command(program, flags, ranks),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = []
    for line in process.stdout:
        output.append(line)
        if mark in line:
            break
    for pid in [process.pid, *descendants(process.pid)]:  # torchrun's ranks have sessions of their own
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    text = "".join(output)
    assert mark in text, text
    return text


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and theirs, from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = []
    for child in children.get(pid, []):
        found += [child, *descendants(child)]
    return found


def losses(output: str) -> dict[int, tuple[str, str]]:
    """Iteration -> (loss, gradient norm) as printed."""
    return {int(found[1]): (found[2], found[3]) for found in LOSS.finditer(output)}
