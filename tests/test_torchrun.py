"""Our torchrun and the scripts around it: signals reach the ranks, nothing is left, the exit code and the log are right.

The ranks run a stand-in program without torch; the launcher comes from a server that has imported torch.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import forked_from_server

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 120.0  # on a machine that does much else; each wait ends as soon as it can

PROGRAM = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
def say(line):  # in one write: torchrun starts Python without buffers, and lines of two ranks would mix
    os.write(1, (line + "\\n").encode())
first = os.environ["RANK"] == "0"
action = sys.argv[1]
if action == "early":  # the signal comes while Python starts
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(1)
if action == "killed" and not first:
    os.kill(os.getpid(), signal.SIGKILL)
if action == "fails":
    sys.exit(0 if first else 75)
from mindspeed_mm import stopping, torchrun
if action == "says":
    if not first:
        assert torchrun.leave_word("error: a.json: no such file\\n", os.environ)
        sys.exit(1)
    stopping.let_signals_in()  # or the launcher would wait 30 s before it kills this rank
    say("a line of another rank")
    time.sleep(1000)
stopping.die_with_parent()
if action == "deaf":
    stopping.ignore()
with stopping.StopRequest(says=first) if action != "deaf" else open(os.devnull) as request:
    say("port " + os.environ["MASTER_PORT"])
    say(f"pid {{os.getpid()}}")
    while action == "deaf" or request.signal() is None:
        time.sleep(0.05)
    time.sleep(1)  # it takes longer than anybody waits
    say(f"saved for {{request.signal()}}")
sys.exit(130 if request.signal() == "Ctrl-C" else 0)
"""


def launcher(arguments: list[str], output: Path) -> None:
    from mindspeed_mm import torchrun

    os.setsid()
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.exit(torchrun.main(arguments))


class Launched:
    """Two ranks of the stand-in program under the launcher."""

    def __init__(self, folder: Path, action: str, flags: tuple[str, ...] = ()):
        folder.mkdir()
        (folder / "program.py").write_text(PROGRAM)
        self.log, self.output = folder / "run.log", folder / "output"
        words = ["--log-file", self.log, "--nproc_per_node", 2, "--local-addr", "localhost", *flags]
        words += [folder / "program.py", action]
        self.process = forked_from_server(launcher, [str(word) for word in words], self.output)

    def ranks(self) -> list[int]:
        """Process ids, once both are ready."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            found = [int(line[4:]) for line in self.lines() if line.startswith("pid ")]
            if len(found) == 2:
                return found
            time.sleep(0.05)
        raise TimeoutError(self.output.read_text())

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def exit_code(self, timeout_s: float = PATIENCE_S) -> int:
        self.process.join(timeout_s)
        return self.process.exitcode

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)


def left_of(pids: list[int], within_s: float = 20.0) -> list[int]:
    """Those that are still running after so long."""
    until = time.monotonic() + within_s
    while pids and time.monotonic() < until:
        pids = [pid for pid in pids if is_running(pid)]
        time.sleep(0.05)
    return pids


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
def launched(tmp_path):
    running: list[Launched] = []

    def launch(action: str, *flags: str) -> Launched:
        running.append(Launched(tmp_path / f"run{len(running)}", action, flags))
        return running[-1]

    yield launch
    for run in running:
        run.process.kill()  # its ranks die with it


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGTERM, "SIGTERM", 0), (signal.SIGUSR1, "SIGUSR1", 0), (signal.SIGINT, "Ctrl-C", 130)],
)
def test_a_signal_to_the_launchers_group_is_handed_on_and_all_is_waited_for(launched, number, name, code):
    run = launched("saves", "--max-restarts", "3")
    ranks = run.ranks()
    os.killpg(run.process.pid, number)
    assert run.exit_code() == code
    lines = run.lines()
    assert lines.count(f"saved for {name}") == 2
    assert run.output.read_text().splitlines() == lines
    assert "Traceback" not in "\n".join(lines)
    assert left_of(ranks) == []


def test_a_signal_that_comes_before_the_ranks_have_their_handlers_is_not_lost(launched):
    run = launched("early")
    assert run.exit_code() == 0
    assert run.lines().count("saved for SIGTERM") == 2


def test_a_second_ctrl_c_ends_ranks_that_do_not_listen(launched):
    run = launched("deaf")
    ranks = run.ranks()
    run.send(signal.SIGINT)
    time.sleep(0.5)
    assert run.process.is_alive()
    run.send(signal.SIGINT)
    assert run.exit_code() == 130
    assert left_of(ranks) == []


def test_ranks_die_with_a_launcher_that_is_killed(launched):
    run = launched("deaf")
    ranks = run.ranks()
    run.send(signal.SIGKILL)
    assert run.exit_code() == -signal.SIGKILL
    assert left_of(ranks) == []


def test_the_exit_code_is_that_of_the_rank_that_failed(launched):
    run = launched("fails")
    assert run.exit_code() == 75
    assert "error: rank 1 ended with exit code 75; its own output says why" in run.lines()
    assert "Traceback" not in run.log.read_text()


def test_two_runs_at_once_have_ports_of_their_own(launched):
    """One after the other may well have the same: the system hands a port out again that nobody holds."""
    runs = [launched("deaf"), launched("deaf")]
    ports = []
    for run in runs:
        run.ranks()
        ports += {line for line in run.lines() if line.startswith("port ")}
    assert len(ports) == len(set(ports)) == 2


def test_a_rank_that_dies_of_a_signal_gives_the_code_of_a_shell(launched):
    run = launched("killed")
    assert run.exit_code() == 128 + signal.SIGKILL
    assert f"error: rank 1 ended with exit code {128 + signal.SIGKILL}; its own output says why" in run.lines()
    assert left_of([int(line[4:]) for line in run.lines() if line.startswith("pid ")]) == []


def test_a_port_that_is_taken_is_one_line(launched):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = launched(
            "saves", "--nnodes", "1", "--node_rank", "0", "--master_addr", "127.0.0.1", "--master_port", port
        )
        assert run.exit_code() == 1
    (line,) = (line for line in run.lines() if line.startswith("error: "))
    assert line.startswith("error: the ranks cannot meet: ") and port in line
    assert "Traceback" not in "\n".join(run.lines())


def test_the_error_of_a_rank_is_the_last_line_and_said_once(launched):
    run = launched("says")
    assert run.exit_code() == 1
    lines = run.lines()
    assert lines[-1] == "error: a.json: no such file"
    assert sum("error:" in line for line in lines) == 1


def prints_into_a_full_log(output: Path) -> None:
    from mindspeed_mm.torchrun import Copy

    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    copy = Copy("/dev/full")
    for line in ("first", "second"):
        os.write(1, f"{line}\n".encode())
        time.sleep(0.2)
    copy.close()


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path):
    process = forked_from_server(prints_into_a_full_log, tmp_path / "output")
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    first, problem, second = (tmp_path / "output").read_text().splitlines()
    assert (first, second) == ("first", "second")
    assert problem == "the log goes on in one place only: [Errno 28] No space left on device"


# ------------------------------------------------------------------------------------------------------------- the scripts


STEPS = f"""
set -euo pipefail
. {ROOT}/examples/quickstart/steps.sh
step true
step bash -c 'trap "echo saved; sleep 0.5; exit $1" TERM; echo pid $$; while :; do sleep 0.05; done' bash "$1"
echo the next step
"""


def steps(code: int) -> subprocess.Popen:
    command = ["bash", "-c", STEPS, "bash", str(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline().startswith("pid ")
    return process


@pytest.mark.parametrize("code", [0, 75])
def test_a_script_hands_a_signal_on_and_ends_with_the_code_of_the_step_at_work(code):
    process = steps(code)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert (output, process.returncode) == ("saved\n", code)


def test_a_step_is_asked_to_end_when_its_script_is_killed():
    process = steps(0)
    process.kill()
    assert process.stdout.read() == "saved\n"


def test_a_step_that_fails_ends_the_script():
    script = STEPS.replace("step true", "step false")
    result = subprocess.run(["bash", "-c", script, "bash", "0"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (result.stdout, result.returncode) == ("", 1)
