"""Building blocks of `faults.py`: a small data set, runs on it, and checks of a run's files after its end."""

import collections
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import fault_warm

ROOT = Path(__file__).resolve().parents[1]
LEFT_S = 60.0  # no process of a run may live so long after the end of what the user started
COLD_TRIES = 1  # of each fault; later ones start their processes as `fault_warm.py` does
START_S = 300.0  # for a run to do its first steps, on a machine that does other things as well
END_S = 300.0  # for a run to end
_MARK = "FAULTS_MARK"  # an environment variable, which every process of a run inherits
_ITERATION = re.compile(r"iteration +(\d+)/\d+ ")
_SAVED = re.compile(r"saved iteration (\d+)")


class Broken(Exception):
    """A promise that was not kept; the message is what was seen instead."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. attempt(world, number of the try): raises Broken; returns the seconds until the end, if any."""

    fault: str
    promised: str
    attempt: Callable[[Path, int], float | None]
    most: int = 1000  # tries, for what takes long

    def run(self, world: Path, tries: int, results: Path) -> list[object]:
        """Cells of the table. results: takes a line for each try when it ends; tries in it are not done again."""
        tries = min(tries, self.most)
        for number in range(len(self._done(results)), tries):
            began = time.monotonic()
            try:
                took, otherwise = self.attempt(world, number), None
            except Broken as problem:
                took, otherwise = None, str(problem)
                print(f"{self.fault}, try {number}: {problem}", file=sys.stderr, flush=True)
            line = {"fault": self.fault, "took": took, "otherwise": otherwise, "all": round(time.monotonic() - began)}
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return self.cells(results)

    def cells(self, results: Path) -> list[object]:
        done = self._done(results)
        otherwise = collections.Counter(line["otherwise"] for line in done if line["otherwise"] is not None)
        seconds = [line["took"] for line in done if line["took"] is not None]
        kept = f"{len(done) - sum(otherwise.values())} of {len(done)} as promised"
        seen = "; ".join([kept, *(f"{count} x {what}" for what, count in otherwise.items())])
        return [self.fault, len(done), self.promised, seen, f"{max(seconds):.0f}" if seconds else ""]

    def _done(self, results: Path) -> list[dict]:
        lines = results.read_text().splitlines() if results.exists() else []
        return [line for line in map(json.loads, lines) if line["fault"] == self.fault]


def make_world(world: Path) -> None:
    """Clips, tiny encoders, JSON files and stored features of the quickstart."""
    networks = ["--mm-data", world / "data.json", "--mm-model", world / "model.json", "--model_custom_precision"]
    prepare = [
        "examples/quickstart/prepare.py",
        "--out",
        world,
        "--clips",
        16,
        "--seen",
        2,
        "--unseen",
        1,
        "--steps",
        3,
    ]
    for program in (prepare, ["tools/extract_features.py", *networks, "--device", "cpu"]):
        words = [sys.executable, ROOT / program[0], *program[1:]]
        subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Started:
    """A command in a session of its own, its output in a file, and every process that comes of it."""

    def __init__(self, world: Path, command: list, attempt: int, environment: dict[str, object] | None = None):
        """attempt: number of the try, which decides how the processes start."""
        self.mark = uuid.uuid4().hex
        self.output = world / f"output_{self.mark}"
        self.output.touch()
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
            "PYTHONUNBUFFERED": "1",
            _MARK: self.mark,
        }
        variables |= {name: str(value) for name, value in (environment or {}).items()}
        words = [str(word) for word in command]
        if attempt >= COLD_TRIES and words[0] == "bash":
            words, variables = _after_bash(self.output.with_suffix(".command"), words, variables)
        if attempt >= COLD_TRIES and words[0] == sys.executable:
            self.process = fault_warm.Forked(words, variables, ROOT, self._redirect)
            return
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _redirect(self) -> None:
        output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor in (1, 2, fault_warm.MARK_FD):
            os.dup2(output, descriptor)

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *error) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if error[0] is None:
            self.output.unlink()

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, pattern: str, timeout_s: float = START_S) -> None:
        """Until a line of the output has the pattern."""
        until = time.monotonic() + timeout_s
        while not re.search(pattern, self.text()):
            if self.process.poll() is not None:
                raise Broken(f"ended with exit code {self.process.returncode} before it was disturbed")
            if time.monotonic() > until:
                raise Broken(f"no {pattern!r} in {timeout_s:.0f} s")
            time.sleep(0.02)

    def wait_for_a_handler(self, number: int, timeout_s: float = START_S) -> None:
        """Until the process that was started handles a signal."""
        until = time.monotonic() + timeout_s
        while True:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
            if caught >> (number - 1) & 1:
                return
            expect(time.monotonic() < until, f"no handler in {timeout_s:.0f} s")
            time.sleep(0.02)

    def iteration(self) -> int:
        """The last that the output names."""
        return max((int(found) for found in _ITERATION.findall(self.text())), default=0)

    def saved(self) -> int:
        return max((int(found) for found in _SAVED.findall(self.text())), default=0)

    def send(self, number: int, to_group: bool = False) -> None:
        (os.killpg if to_group else os.kill)(self.process.pid, number)

    def processes(self) -> dict[int, int]:
        """Process id -> parent of all that run: in the session of what was started, or with its mark."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, parent, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
                if state != "Z" and (int(session) == self.process.pid or self._has_mark(folder)):
                    found[int(folder.name)] = int(parent)
        return found

    def _has_mark(self, folder: Path) -> bool:
        if f"{_MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
            return True
        with contextlib.suppress(OSError):
            return (folder / "fd" / str(fault_warm.MARK_FD)).readlink() == self.output
        return False

    def ranks(self) -> list[int]:
        """Leaders of sessions that are not the launcher, in the order of their start; the only process if there is none."""
        own = [pid for pid in self.processes() if pid != self.process.pid and os.getsid(pid) == pid]
        return sorted(own) or [self.process.pid]

    def workers(self) -> list[int]:
        """Processes that a rank has started."""
        ranks = self.ranks()
        return [pid for pid, parent in self.processes().items() if parent in ranks]

    def end(self, timeout_s: float = END_S) -> tuple[int, float]:
        """Wait for the end: exit code as of a shell, and seconds. Broken if a process of the run lives 60 s longer."""
        begun = time.monotonic()
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Broken(f"still running after {timeout_s:.0f} s") from None
        took, until = time.monotonic() - begun, time.monotonic() + LEFT_S
        while left := self.processes():
            if time.monotonic() > until:
                raise Broken(f"{len(left)} processes live {LEFT_S:.0f} s after the end")
            time.sleep(0.1)
        return code if code >= 0 else 128 - code, took


def _after_bash(file: Path, command: list[str], variables: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """What a script ends in: the command that takes its shell's place, and its environment."""
    note = file.with_suffix(".sh")
    note.write_text(f"#!/bin/sh\nenv -0 > {file}_env\nprintf '%s\\0' \"$@\" > {file}\n")
    note.chmod(0o755)
    subprocess.run(command, cwd=ROOT, env={**variables, "PYTHON": str(note)}, check=True)
    words = file.read_text().split("\0")[:-1]
    environment = dict(item.split("=", 1) for item in Path(f"{file}_env").read_text().split("\0")[:-1])
    for used in (note, file, Path(f"{file}_env")):
        used.unlink()
    return [sys.executable, *words], environment


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Broken(otherwise)
