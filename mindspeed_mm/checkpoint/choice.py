"""Which checkpoint a run continues from: the first rank chooses, tells all, and every rank checks it against what it sees.

Ranks see a shared folder through caches, and a folder that is not shared at all. What one rank decided for itself from a
listing may be another checkpoint than its neighbour's; they would train on together, each from its own.
"""

import contextlib
import dataclasses
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import files, integrity, layout
from mindspeed_mm.checkpoint.store import bring_back
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.parallel.collectives import from_first_rank
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.meeting import meet

_log = logs.get(__name__)
PATIENCE_S = 60.0  # a file system of the network may show a new file that late; NFS keeps a listing for up to a minute
_POLL_S = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What the first rank sees in a folder: checkpoints, best first (empty: none), and a line about them, if any."""

    candidates: tuple[layout.Location, ...] = ()
    note: str | None = None


def look(root: Path, parallel: ParallelContext) -> Found:
    """The checkpoints in `root` as the first rank sees them, on every rank; collective.

    CheckpointError, on all, if another rank goes on seeing another folder; it names the rank, its host and the path.
    """
    told = first_says(parallel, lambda: _candidates(root))
    # By their names: every rank looks under the path that it was given itself.
    here = tuple(dataclasses.replace(location, directory=root / location.directory) for location in told.candidates)
    found = Found(here, told.note)

    def differs() -> str | None:
        if not found.candidates:
            return "it holds a checkpoint, and none where the first rank runs" if layout.has_checkpoint(root) else None
        best = found.candidates[0].directory
        return None if best.is_dir() else f"it has no {best.name}, which the first rank sees"

    _all_see(root, parallel, differs)
    return found


def choose(root: Path, parallel: ParallelContext) -> layout.Location | None:
    """The checkpoint to load: the tracker's, or the latest before it that is whole; the same on every rank; collective.

    None if there is none. Damaged ones are passed over, each with a line that says why; CheckpointError if all are.
    """
    found = look(root, parallel)
    if not found.candidates:
        return None
    if found.note is not None:
        _say(parallel, found.note)
    reasons = []
    for location in found.candidates:
        _same_files(root, location, parallel)
        reason = _damage(location, parallel)
        if reason is None:
            return location
        reasons.append(reason)
        _say(parallel, f"passed over {location.directory.name}: {reason}")
    raise CheckpointError(f"{root}: holds no checkpoint that can be loaded; the latest: {reasons[0]}")


def check_shared(root: Path, flag: str, parallel: ParallelContext) -> None:
    """CheckpointError, on all ranks, unless what the first rank writes into `root` is there for all; collective.

    All nodes write and read checkpoints: a folder that each node has for itself would fail at the first save.
    """
    token = root / first_says(parallel, lambda: _write_token(root, flag))
    try:
        _all_see(root, parallel, lambda: None if token.is_file() else "what the first rank writes is not there", flag)
    finally:
        if parallel.is_first:
            token.unlink(missing_ok=True)


def first_says(parallel: ParallelContext, decide: Callable):
    """What `decide` returns on the first rank, on every rank; its CheckpointError or OSError is raised on all."""
    answer = failure = None
    if parallel.is_first:
        try:
            answer = decide()
        except (CheckpointError, OSError) as error:
            failure = str(error)
    answer, failure = from_first_rank((answer, failure))
    if failure is not None:
        raise CheckpointError(failure)
    return answer


# ------------------------------------------------------------------------------------------------------------ one rank


def _candidates(root: Path) -> Found:
    """With directories relative to `root`."""
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
        files.write_text(flag, token)
    except OSError as error:
        raise CheckpointError(f"{flag} {root}: cannot be written ({error.strerror or error})") from None
    return token.name


def _listing(directory: Path) -> dict[str, int]:
    """Path below a checkpoint's directory -> bytes."""
    return {str(path.relative_to(directory)): path.stat().st_size for path in directory.rglob("*") if path.is_file()}


def _say(parallel: ParallelContext, line: str) -> None:
    if parallel.is_first:
        _log.warning(line)


# ----------------------------------------------------------------------------------------------------------- all ranks


def _all_see(
    root: Path, parallel: ParallelContext, differs: Callable[[], str | None], flag: str = "a checkpoint's folder"
) -> None:
    """Wait until no rank differs; CheckpointError on all, naming the first rank that still does after PATIENCE_S."""
    until = time.monotonic() + PATIENCE_S

    def decide(reports: list[list]) -> str | None:
        unlike = [(rank, *report) for rank, report in enumerate(reports) if report[0] is not None]
        if not unlike or unlike[0][0] == 0:  # the first rank itself: a run that goes on has just deleted it
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
    """Every rank sees the files that the first one sees, with their sizes."""
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


def _damage(location: layout.Location, parallel: ParallelContext) -> str | None:
    """Why a checkpoint cannot be used, the same answer on every rank; each rank looks at its share of the files."""
    mine = None
    try:
        layout.check(location.directory)
        recorded = sorted(integrity.read(location.directory).items())
        share = dict(recorded[parallel.rank :: parallel.world_size])
        integrity.verify(share, location.directory, parallel.pulse.beat)
        _check_iteration(location, parallel)
    except (CheckpointError, OSError) as error:
        mine = str(error)
    return meet("checking", parallel, mine, lambda reasons: next((one for one in reasons if one is not None), None))


def _check_iteration(location: layout.Location, parallel: ParallelContext) -> None:
    """Raise CheckpointError if a file is of another iteration than its directory's name says, for example a renamed one."""
    if location.iteration is None:
        return
    for path in layout.state_files(location.directory)[parallel.rank :: parallel.world_size]:
        inside = files.open_mapped(path)[0].get("iteration")
        if inside is not None and inside != location.iteration:
            raise CheckpointError(f"{path}: is of iteration {inside}, its directory's name says {location.iteration}")
