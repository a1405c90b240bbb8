"""Jobs of a server in SQLite. A job that was accepted is on the disk, so a killed server goes on with it.

One process uses the file at a time: the server holds its folder's lock. This file knows no web and no network.
"""

import contextlib
import dataclasses
import errno
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mindspeed_mm.errors import ConfigError, ServerFull

NAME = "queue.sqlite"
QUEUED, RUNNING, DONE, FAILED = "queued", "in_progress", "completed", "failed"  # as OpenAI spells them
_REMOVED = "removed"  # deleted by its owner; its files are still there
_LAST_AFTER = 3  # starts of a job after which it lets all others go first: it may be what ends the server
_MAX_STARTS = 20  # a job that was begun so often without an end fails
_FORMAT = 1  # of the tables
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, status TEXT NOT NULL,
    request TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL, starts INTEGER NOT NULL DEFAULT 0,
    file TEXT, code TEXT, message TEXT, repeat_key TEXT, digest TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS repeats ON jobs (owner, repeat_key) WHERE repeat_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_status ON jobs (status, number);
"""
_FIELDS = "id, owner, status, request, created, started, finished, starts, file, code, message"


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A request and what has become of it. owner: name of the key that sent it. Times are seconds since the epoch.

    starts: how often its work has begun. file: name of the finished sample. code, message: why it failed.
    """

    id: str
    owner: str
    status: str
    request: dict[str, Any]
    created: float
    started: float | None = None
    finished: float | None = None
    starts: int = 0
    file: str | None = None
    code: str | None = None
    message: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class New:
    """A request to be added. repeat_key: its Idempotency-Key. digest: of what was asked, which tells two requests of one
    key apart.
    """

    id: str
    owner: str
    request: dict[str, Any]
    digest: str
    repeat_key: str | None = None


class Repeated(Exception):
    """An Idempotency-Key came again, with another request."""


class Queue:
    """The jobs of one folder. Every method is one transaction that is on the disk when it returns; thread-safe.

    All methods raise OSError if the disk is full or broken, and then nothing has changed.
    """

    def __init__(self, folder: Path, max_waiting: int, observe: Callable[[str, float], None] = lambda name, s: None):
        """max_waiting: jobs that may wait beside the running one. observe: told the seconds of every operation."""
        self.path = folder / NAME
        self.max_waiting = max_waiting
        self._observe = observe
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5)
        self._rows.row_factory = sqlite3.Row
        with self._os_errors():
            self._open()

    def _open(self) -> None:
        # One process, so that the write-ahead log needs no memory shared with others, which network disks lack.
        self._rows.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._rows.execute("PRAGMA journal_mode = WAL")
        self._rows.execute("PRAGMA synchronous = FULL")  # a commit is on the disk
        (found,) = self._rows.execute("PRAGMA user_version").fetchone()
        if found not in (0, _FORMAT):
            raise ConfigError(
                f"{self.path}: a queue of format {found}; this version reads {_FORMAT}, use its own folder"
            )
        self._rows.executescript(_TABLES)
        self._rows.execute(f"PRAGMA user_version = {_FORMAT}")

    def close(self) -> None:
        with self._lock:
            self._rows.close()

    def add(self, new: New, most_of_owner: int | None = None) -> tuple[Job, bool]:
        """Adds a job, or finds the one with the same Idempotency-Key. Returns it, and whether it is new.

        most_of_owner: unfinished jobs that its owner may have. Raises ServerFull, or Repeated.
        """
        with self._changing("add") as rows:
            if new.repeat_key is not None and (job := _repeated(rows, new)) is not None:
                return job, False
            waiting = _count(rows, "status = ?", QUEUED)
            mine = _count(rows, "owner = ? AND status IN (?, ?)", new.owner, QUEUED, RUNNING)
            if most_of_owner is not None and mine >= most_of_owner:
                raise ServerFull(
                    f"{mine} of your videos are unfinished, and {most_of_owner} may be; wait for one of them"
                )
            if waiting >= self.max_waiting:
                raise ServerFull(f"{waiting} videos wait already, and {self.max_waiting} may; try again later")
            rows.execute(
                "INSERT INTO jobs (id, owner, status, request, created, repeat_key, digest) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (new.id, new.owner, QUEUED, json.dumps(new.request), time.time(), new.repeat_key, new.digest),
            )
            return _found(rows, new.id), True

    def take(self) -> Job | None:
        """The oldest waiting job, which is now in progress; None if no job waits.

        A job at which the server has ended several times comes last.
        """
        with self._changing("take") as rows:
            query = "SELECT id FROM jobs WHERE status = ? ORDER BY starts >= ?, number LIMIT 1"
            row = rows.execute(query, (QUEUED, _LAST_AFTER)).fetchone()
            if row is None:
                return None
            rows.execute(
                "UPDATE jobs SET status = ?, started = ?, starts = starts + 1 WHERE id = ?",
                (RUNNING, time.time(), row["id"]),
            )
            return _found(rows, row["id"])

    def finish(self, id: str, file: str) -> bool:
        """A job has its file. False if it was removed meanwhile; then its files have no owner any more."""
        with self._changing("finish") as rows:
            return _ended(rows, id, "status = ?, finished = ?, file = ?", DONE, time.time(), file)

    def fail(self, id: str, code: str, message: str) -> bool:
        """A job ends without a file. False if it was removed meanwhile, or has ended."""
        with self._changing("fail") as rows:
            return _ended(
                rows, id, "status = ?, finished = ?, code = ?, message = ?", FAILED, time.time(), code, message
            )

    def give_back(self, id: str) -> None:
        """The work at a job ended through no fault of its own: it waits again, at its old place."""
        with self._changing("give_back") as rows:
            rows.execute(
                "UPDATE jobs SET status = ?, started = NULL, starts = starts - 1 WHERE id = ? AND status = ?",
                (QUEUED, id, RUNNING),
            )

    def resume(self) -> list[Job]:
        """Jobs that a killed server was at wait again; returns them, and those that now have failed."""
        with self._changing("resume") as rows:
            found = [_job(row) for row in rows.execute(f"SELECT {_FIELDS} FROM jobs WHERE status = ?", (RUNNING,))]
            for job in found:
                if job.starts < _MAX_STARTS:
                    rows.execute("UPDATE jobs SET status = ?, started = NULL WHERE id = ?", (QUEUED, job.id))
                else:
                    reason = f"the server ended {job.starts} times while it made this video"
                    _ended(
                        rows, job.id, "status = ?, finished = ?, code = ?, message = ?",
                        FAILED, time.time(), "server_ended", reason,
                    )  # fmt: skip
            return [_found(rows, job.id) for job in found]

    def remove(self, id: str, owner: str) -> Job | None:
        """A job is no longer to be found; returns it as it was, None if `owner` has none of this name.

        The row stays until `forget`, so that files of it are found even if the server is killed now.
        """
        with self._changing("remove") as rows:
            job = _found(rows, id, owner)
            if job is not None:
                rows.execute("UPDATE jobs SET status = ? WHERE id = ?", (_REMOVED, id))
            return job

    def expire(self, before: float) -> None:
        """Jobs that ended before this time, in seconds since the epoch, are no longer to be found; see `remove`."""
        with self._changing("expire") as rows:
            rows.execute(
                "UPDATE jobs SET status = ? WHERE status IN (?, ?) AND finished < ?", (_REMOVED, DONE, FAILED, before)
            )

    def forget(self, id: str) -> None:
        """The files of a removed job are gone, so its row goes."""
        with self._changing("forget") as rows:
            rows.execute("DELETE FROM jobs WHERE id = ? AND status = ?", (id, _REMOVED))

    def removed(self) -> list[str]:
        """Jobs whose files are still to be removed."""
        with self._reading("removed") as rows:
            return [row["id"] for row in rows.execute("SELECT id FROM jobs WHERE status = ?", (_REMOVED,))]

    def get(self, id: str, owner: str | None = None) -> Job | None:
        """owner: None: of any."""
        with self._reading("get") as rows:
            return _found(rows, id, owner)

    def list(self, owner: str, limit: int, after: str | None, newest_first: bool) -> list[Job] | None:
        """Jobs of an owner, beginning behind the job `after`; None if there is no such job."""
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        with self._reading("list") as rows:
            where, values = "owner = ? AND status != ?", [owner, _REMOVED]
            if after is not None:
                row = rows.execute("SELECT number FROM jobs WHERE id = ? AND owner = ?", (after, owner)).fetchone()
                if row is None:
                    return None
                where, values = f"{where} AND number {sign} ?", [*values, row["number"]]
            query = f"SELECT {_FIELDS} FROM jobs WHERE {where} ORDER BY number {order} LIMIT ?"
            return [_job(row) for row in rows.execute(query, (*values, limit))]

    def position(self, id: str) -> int | None:
        """1 for the job that is begun next, and so on; None if the job does not wait."""
        with self._reading("position") as rows:
            row = rows.execute("SELECT status, starts >= ? AS last, number FROM jobs WHERE id = ?", (_LAST_AFTER, id))
            job = row.fetchone()
            if job is None or job["status"] != QUEUED:
                return None
            before = "status = ? AND (starts >= ?, number) <= (?, ?)"
            return _count(rows, before, QUEUED, _LAST_AFTER, job["last"], job["number"])

    def counts(self) -> dict[str, int]:
        """Number of jobs per status."""
        with self._reading("counts") as rows:
            found = dict(rows.execute("SELECT status, COUNT(*) FROM jobs GROUP BY status").fetchall())
        return {status: found.get(status, 0) for status in (QUEUED, RUNNING, DONE, FAILED)}

    def seconds_per_job(self) -> float | None:
        """Mean time of the last ten finished jobs; None without any."""
        with self._reading("pace") as rows:
            query = "SELECT finished - started AS s FROM jobs WHERE status = ? ORDER BY finished DESC LIMIT 10"
            found = [row["s"] for row in rows.execute(query, (DONE,))]
        return sum(found) / len(found) if found else None

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[sqlite3.Connection]:
        started = time.monotonic()
        with self._lock, self._os_errors():
            self._rows.execute("BEGIN IMMEDIATE")
            try:
                yield self._rows
                self._rows.execute("COMMIT")
            except BaseException:
                if self._rows.in_transaction:  # a full disk may have rolled it back already
                    self._rows.execute("ROLLBACK")
                raise
        self._observe(name, time.monotonic() - started)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[sqlite3.Connection]:
        started = time.monotonic()
        with self._lock, self._os_errors():
            yield self._rows
        self._observe(name, time.monotonic() - started)

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        """An error of SQLite as one of the system, which callers know from other files."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(self.path)) from error


def _repeated(rows: sqlite3.Connection, new: New) -> Job | None:
    """The job that the Idempotency-Key of a request has made. Raises Repeated if it asked for something else."""
    row = rows.execute(
        f"SELECT {_FIELDS}, digest FROM jobs WHERE owner = ? AND repeat_key = ?", (new.owner, new.repeat_key)
    ).fetchone()
    if row is None:
        return None
    if row["digest"] != new.digest or row["status"] == _REMOVED:
        raise Repeated
    return _job(row)


def _count(rows: sqlite3.Connection, where: str, *values: object) -> int:
    return rows.execute(f"SELECT COUNT(*) FROM jobs WHERE {where}", values).fetchone()[0]


def _ended(rows: sqlite3.Connection, id: str, changes: str, *values: object) -> bool:
    """Changes an unfinished job."""
    done = rows.execute(f"UPDATE jobs SET {changes} WHERE id = ? AND status IN (?, ?)", (*values, id, QUEUED, RUNNING))
    return done.rowcount == 1


def _found(rows: sqlite3.Connection, id: str, owner: str | None = None) -> Any:
    row = rows.execute(f"SELECT {_FIELDS} FROM jobs WHERE id = ? AND status != ?", (id, _REMOVED)).fetchone()
    return None if row is None or owner not in (None, row["owner"]) else _job(row)


def _job(row: sqlite3.Row) -> Job:
    values = {field.name: row[field.name] for field in dataclasses.fields(Job)}
    return Job(**{**values, "request": json.loads(values["request"])})
