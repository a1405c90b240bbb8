"""Allows one run per folder: a lock file names the run that writes there, its host and its start.

Two runs with one `--save` would silently mix their checkpoints. The lock file is created in one step and needs no lock
of the operating system, which some network file systems lack. Its holder touches it every few seconds. A dead holder
is recognised by its process on the same machine, and by the age of the last touch from another machine.
"""

import contextlib
import dataclasses
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.meeting import meet

_log = logs.get(__name__)
NAME = "run.lock"
_TOUCH_S = 10.0
_DEAD_S = 60.0  # seconds without a touch; network file systems show a touch seconds later
_GRACE_S = 10.0
_LOOK_S = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a lock. machine: boot id and process table, so that two containers of one host differ.

    born: start of the process, in ticks since the boot. job, restart: torchrun's rendezvous address and restart count.
    """

    host: str
    machine: str
    pid: int
    born: str
    since: str
    run: str
    job: str = ""
    restart: int = 0

    @classmethod
    def me(cls) -> "Holder":
        job = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            born=_born(os.getpid()),
            since=time.strftime("%Y-%m-%d %H:%M:%S%z"),
            run=uuid.uuid4().hex,
            job="" if job.startswith(("localhost", "127.", ":")) else job,
            restart=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class RunLock:
    """Lock of a folder, for one process: `take` it, `release` it; a thread touches the file in between."""

    def __init__(self, folder: Path):
        self._file = folder / NAME
        self._me = Holder.me()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="run lock", daemon=True)

    def take(self) -> None:
        """Creates the file, or takes it over from a dead holder. Raises ConfigError if another run is alive."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        while not self._made():
            holder, touched = _read(self._file)
            reason = self._why_dead(holder, touched)
            if reason is None:
                who = "another process" if holder is None else str(holder)
                raise ConfigError(
                    f"{self._file.parent}: in use by another run ({who}); two runs in one folder would mix their files. "
                    f"End it or name another folder; if it is dead for sure, delete {self._file}"
                )
            if self._removed(holder):
                _log.warning(f"{self._file}: taken over from {holder or 'an unknown run'}, {reason}")
        self._thread.start()

    def release(self) -> None:
        """Removes the file if this process still holds it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_mine():
                self._file.unlink()

    def _made(self) -> bool:
        """Creates the file, complete, by a hard link, which is one step on file systems that have links. True if it is
        ours.
        """
        text = json.dumps(dataclasses.asdict(self._me))
        with tempfile.NamedTemporaryFile("w", dir=self._file.parent, prefix=f".{NAME}.", encoding="utf-8") as made:
            made.write(text)
            made.flush()
            try:
                os.link(made.name, self._file)
            except FileExistsError:
                return False
            except OSError:  # this file system has no links
                return self._made_in_place(text)
        return True

    def _made_in_place(self, text: str) -> bool:
        try:
            with open(self._file, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _removed(self, dead: Holder | None) -> bool:
        """Removes the file of a dead holder, but not that of another run which has just taken over."""
        grave = self._file.with_name(f".{NAME}.{self._me.run}")
        try:
            self._file.rename(grave)
        except FileNotFoundError:
            return False
        is_it = _read(grave)[0] == dead
        if not is_it:
            with contextlib.suppress(OSError):
                os.link(grave, self._file)
        grave.unlink()
        return is_it

    def _why_dead(self, holder: Holder | None, touched: float) -> str | None:
        """Reason to believe that the holder has ended; None if it is alive. From another machine this may take a
        minute.
        """
        if holder is not None and holder.machine == self._me.machine:
            return "which has ended" if self._ends(holder) else None
        if holder is not None and holder.job and holder.job == self._me.job and holder.restart < self._me.restart:
            return "which torchrun has started again"
        first = True
        while (age := self._now() - touched) < _DEAD_S:
            if first:
                _log.info(f"{self._file}: held by {holder or 'an unknown run'}; waiting for a sign of life")
            first = False
            time.sleep(_LOOK_S)
            before, (holder, touched) = touched, _read(self._file)
            if touched == 0.0:
                return "which has just ended"
            if touched != before:
                return None
        return f"without a sign of life for {age:.0f} s"

    def _ends(self, holder: Holder) -> bool:
        """True if a process of this machine ends soon, as one does whose launcher has just been killed."""
        until = time.monotonic() + _GRACE_S
        while _born(holder.pid) == holder.born and self._file.exists():
            if holder.pid == os.getpid() or time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def _now(self) -> float:
        """Current time by the clock of the file system, which may run on another machine."""
        with tempfile.NamedTemporaryFile(dir=self._file.parent, prefix=f".{NAME}.") as probe:
            return os.fstat(probe.fileno()).st_mtime

    def _touch(self) -> None:
        while not self._stop.wait(_TOUCH_S):
            with contextlib.suppress(OSError):
                if not self._is_mine():
                    _log.error(f"{self._file}: another run has taken this folder over; the files of both may mix")
                    return
                os.utime(self._file)

    def _is_mine(self) -> bool:
        holder, _ = _read(self._file)
        return holder is not None and holder.run == self._me.run


@contextlib.contextmanager
def held(folder: str | Path | None, parallel: ParallelContext) -> Iterator[None]:
    """Locks `folder` for this run while the context is open; the first rank holds the lock. Collective."""
    if folder is None:
        yield
        return
    lock, fault = RunLock(Path(folder)), None
    if parallel.is_first:
        try:
            lock.take()
        except ConfigError as error:
            fault = str(error)
        except OSError as error:
            fault = f"{folder}: cannot be locked ({type(error).__name__}: {error})"
    fault = meet("the lock", parallel, fault, lambda faults: faults[0])
    if fault is not None:
        raise ConfigError(fault)
    try:
        yield
    finally:
        if parallel.is_first:
            lock.release()


def _read(file: Path) -> tuple[Holder | None, float]:
    """The holder, None if unreadable, and the time of its last touch, 0 if the file is gone."""
    try:
        with open(file, encoding="utf-8") as opened:  # opening the file makes network file systems refresh it
            touched = os.fstat(opened.fileno()).st_mtime
            return Holder(**json.load(opened)), touched
    except FileNotFoundError:
        return None, 0.0
    except (OSError, TypeError, ValueError):
        with contextlib.suppress(OSError):
            return None, file.stat().st_mtime
        return None, 0.0


def _machine() -> str:
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(path) if "/ns/" in path else Path(path).read_text().strip())
    return " ".join([socket.gethostname(), *parts])


def _born(pid: int) -> str:
    """Start time of a process; "" if there is none, or if it has ended and its parent has not collected it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        try:
            os.kill(pid, 0)
        except OSError:
            return ""
        return "alive"
    return "" if fields[0] in "ZX" else fields[19]
