"""Running the entry points as a user does.

`run_until` starts them by torchrun. `run` starts the same programs in processes of their own, with the variables that
torchrun sets, but from a server that has imported what they import: of a run of a few steps, imports are most.
"""

import contextlib
import multiprocessing.connection
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from ranks import forked_from_server

ROOT = Path(__file__).resolve().parents[2]
LOSS = re.compile(r"iteration +(\d+)/\d+ .* loss: ([0-9.E+-]+) .* grad norm: ([0-9.]+)")


def command(program: str, flags: list, ranks: int = 1) -> list[str]:
    """The command line of a program on `ranks` processes of the CPU."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(free_port())]
    return [*launcher, str(ROOT / program), "--device", "cpu", *map(str, flags)]


def free_port() -> int:
    """Below the ports that the system gives to connections (32768 and up on Linux): there one may be taken by the time a
    launcher listens."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", port))
            return port


def environment() -> dict[str, str]:
    """One thread per rank, and nothing of this process's own ranks."""
    mine = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**mine, "OMP_NUM_THREADS": "1"}


def run(
    program: str, flags: list, ranks: int = 1, timeout_s: float = 180, device: str | None = "cpu"
) -> subprocess.CompletedProcess:
    """Wait for a program on `ranks` processes; as with torchrun, the first that fails ends the others.

    device: None for a program that has no --device.
    """
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())} if ranks > 1 else {}
    arguments = [str(ROOT / program), *(["--device", device] if device else []), *map(str, flags)]
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        processes = [
            forked_from_server(_main, arguments, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, printed)
            for rank in range(ranks)
        ]
        code = _exit_code(processes, timeout_s)
        return subprocess.CompletedProcess(arguments, code, *(file.read_text() for file in printed))


def page_of(flags: list, timeout_s: float = 120) -> str:
    """The page that `mindspeed_mm.serve` answers with, once; the server is ended then."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        arguments = ["mindspeed_mm.serve", "--device", "cpu", "--port", str(port), *map(str, flags)]
        process = forked_from_server(_main, arguments, {"OMP_NUM_THREADS": "1"}, printed)
        try:
            return _page(f"http://127.0.0.1:{port}/", process, time.monotonic() + timeout_s)
        except (OSError, TimeoutError) as error:
            raise AssertionError("".join(file.read_text() for file in printed if file.exists())) from error
        finally:
            process.kill()
            process.join()


def _page(address: str, process, until: float) -> str:
    while process.exitcode is None and time.monotonic() < until:
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(address, timeout=30) as answer:
            return answer.read().decode()
        time.sleep(0.2)
    raise TimeoutError


def _main(arguments: list[str], variables: dict[str, str], printed: list[Path]) -> None:
    for descriptor, file in enumerate(printed, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.argv = arguments
    if Path(arguments[0]).is_file():
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _exit_code(processes: list, timeout_s: float) -> int:
    """0 if all ended well, else that of the first that did not."""
    until, running, failed = time.monotonic() + timeout_s, processes, []
    while running and not failed and time.monotonic() < until:
        multiprocessing.connection.wait([process.sentinel for process in running], 1.0)
        running = [process for process in processes if process.exitcode is None]
        failed = [process.exitcode for process in processes if process.exitcode]
    for process in running:
        process.kill()
        process.join()
    if running and not failed:
        raise TimeoutError(f"a program has not ended in {timeout_s} s")
    return failed[0] if failed else 0


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
