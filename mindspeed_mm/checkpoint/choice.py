"""Chooses the checkpoint that a run continues from: the first rank chooses, and every rank checks that it sees the
same.

Ranks see a shared folder through caches; a folder may also not be shared at all. Ranks that each chose from their own
listing could load different checkpoints and train on together.
"""

import contextlib
import dataclasses
import secrets
import socket
import time
import typing
from collections.abc import Callable
from pathlib import Path

from mindspeed_mm import atomic, logs
from mindspeed_mm.checkpoint.store import bring_back
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, layout, torch_state
from mindspeed_mm.parallel.collectives import from_first_rank
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.meeting import meet

_log = logs.get(__name__)
PATIENCE_S = 60.0  # seconds in which a network file system may show a new file; NFS keeps a listing for up to a minute
_POLL_S = 0.5
_T = typing.TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """Checkpoints that the first rank sees in a folder, best first, and a line about them, or None."""

    candidates: tuple[layout.Location, ...] = ()
    note: str | None = None


def look(root: Path, parallel: ParallelContext) -> Found:
    """Checkpoints in `root` as the first rank sees them, on every rank; collective.

    Raises CheckpointError on all ranks if another rank keeps seeing another folder; the error names rank, host and
    path.
    """
    told = first_says(parallel, lambda: _candidates(root))
    # Compared by name: every rank looks under its own path.
    here = tuple(dataclasses.replace(location, directory=root / location.directory) for location in told.candidates)
    found = Found(here, told.note)

    def differs() -> str | None:
        if not found.candidates:
            return "it holds a checkpoint, and none where the first rank runs" if layout.has_checkpoint(root) else None
        best = found.candidates[0].directory
        return None if best.is_dir() else f"it has no {best.name}, which the first rank sees"

    _all_see(root, parallel, differs)
    return found


def choose(
    root: Path, parallel: ParallelContext, open_state: torch_state.OpenState = torch_state.open_mapped
) -> layout.Location | None:
    """The checkpoint to load, the same on every rank; collective: the tracker's, or the latest undamaged one before
    it.

    open_state: opens the files that state the iteration; a caller that reads them too passes one that keeps them.
    Returns None if there is none. Damaged checkpoints are skipped, each with a log line that gives the reason. Raises
    CheckpointError if all are damaged.
    """
    found = look(root, parallel)
    if not found.candidates:
        return None
    if found.note is not None:
        _say(parallel, found.note)
    reasons = []
    for location in found.candidates:
        _same_files(root, location, parallel)
        reason = _damage(location, parallel, open_state)
        if reason is None:
            return location
        reasons.append(reason)
        _say(parallel, f"passed over {location.directory.name}: {reason}")
    raise CheckpointError(f"{root}: holds no checkpoint that can be loaded; the latest: {reasons[0]}")


def check_shared(root: Path, flag: str, parallel: ParallelContext) -> None:
    """Raises CheckpointError on all ranks unless every rank sees what the first rank writes into `root`; collective.

    All nodes write and read checkpoints, so a folder local to each node would fail at the first save.
    """
    token = root / first_says(parallel, lambda: _write_token(root, flag))
    try:
        _all_see(root, parallel, lambda: None if token.is_file() else "what the first rank writes is not there", flag)
    finally:
        if parallel.is_first:
            token.unlink(missing_ok=True)


def first_says(parallel: ParallelContext, decide: Callable[[], _T]) -> _T:
    """Runs `decide` on the first rank and returns its result on every rank; its CheckpointError or OSError is raised
    on all.
    """
    answer: _T | None = None
    failure: str | None = None
    if parallel.is_first:
        try:
            answer = decide()
        except (CheckpointError, OSError) as error:
            failure = str(error)
    answer, failure = from_first_rank((answer, failure))
    if failure is not None:
        raise CheckpointError(failure)
    return typing.cast(_T, answer)


# ------------------------------------------------------------------------------------------------------------ one rank


def _candidates(root: Path) -> Found:
    """Checkpoints in `root`, with directories relative to it."""
    with contextlib.suppress(OSError):
        bring_back(root)
    if not layout.has_checkpoint(root):
        return Found()
    found, note = layout.candidates(root)
    return Found(
        tuple(dataclasses.replace(location, directory=location.directory.relative_to(root)) for location in found), note
    )


def _write_token(root: Path, flag: str) -> str:
    token = root / f".shared_{secrets.token_hex(8)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        atomic.write_text(token, flag)
    except OSError as error:
        raise CheckpointError(f"{flag} {root}: cannot be written ({error.strerror or error})") from None
    return token.name


def _listing(directory: Path) -> dict[str, int]:
    """File sizes in bytes by path below a checkpoint's directory."""
    return {str(path.relative_to(directory)): path.stat().st_size for path in directory.rglob("*") if path.is_file()}


def _say(parallel: ParallelContext, line: str) -> None:
    if parallel.is_first:
        _log.warning(line)


# ----------------------------------------------------------------------------------------------------------- all ranks


def _all_see(
    root: Path, parallel: ParallelContext, differs: Callable[[], str | None], flag: str = "a checkpoint's folder"
) -> None:
    """Waits until no rank differs. After PATIENCE_S raises CheckpointError on all ranks and names the first that still
    differs.
    """
    until = time.monotonic() + PATIENCE_S

    def decide(reports: list[list]) -> str | None:
        unlike = [(rank, *report) for rank, report in enumerate(reports) if report[0] is not None]
        if not unlike or unlike[0][0] == 0:  # the first rank itself: a continuing run has just deleted the folder
            return ""
        if time.monotonic() < until:
            return None  # look again
        rank, reason, host = unlike[0]
        more = f" ({len(unlike)} ranks see another one)" if len(unlike) > 1 else ""
        return (
            f"{root}: rank {rank} on {host} sees another folder under this path{more}: {reason}; "
            f"{flag} must be one that all nodes share"
        )

    while (fault := meet("seeing one folder", parallel, (_attempt(differs), socket.gethostname()), decide)) is None:
        time.sleep(_POLL_S)
    if fault:
        raise CheckpointError(fault)


def _same_files(root: Path, location: layout.Location, parallel: ParallelContext) -> None:
    """Checks that every rank sees the first rank's files with their sizes."""
    wanted = first_says(parallel, lambda: _listing(location.directory))

    def differs() -> str | None:
        mine = _listing(location.directory)
        unlike = sorted(name for name, size in wanted.items() if mine.get(name) != size)
        return f"{location.directory.name}/{unlike[0]} is missing or has another size there" if unlike else None

    _all_see(root, parallel, differs)


def _attempt(differs: Callable[[], str | None]) -> str | None:
    try:
        return differs()
    except (CheckpointError, OSError) as error:
        return str(error)


def _damage(location: layout.Location, parallel: ParallelContext, open_state: torch_state.OpenState) -> str | None:
    """Reason why a checkpoint is unusable, the same on every rank, or None; each rank checks its share of the files."""
    mine = None
    try:
        layout.check(location.directory)
        recorded = sorted(integrity.read(location.directory).items())
        share = dict(recorded[parallel.rank :: parallel.world_size])
        integrity.verify(share, location.directory, parallel.pulse.beat)
        _check_iteration(location, parallel, open_state)
    except (CheckpointError, OSError) as error:
        mine = str(error)
    return meet("checking", parallel, mine, lambda reasons: next((one for one in reasons if one is not None), None))


def _check_iteration(location: layout.Location, parallel: ParallelContext, open_state: torch_state.OpenState) -> None:
    """Raises CheckpointError if a file's iteration is not that of its directory's name, for example after a rename."""
    if location.iteration is None:
        return
    for path in layout.state_files(location.directory)[parallel.rank :: parallel.world_size]:
        inside = open_state(path)[0].get("iteration")
        if inside is not None and inside != location.iteration:
            raise CheckpointError(f"{path}: is of iteration {inside}, its directory's name says {location.iteration}")
