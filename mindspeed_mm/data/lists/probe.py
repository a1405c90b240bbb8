"""Takes facts that an annotation omits from the file itself: size, frame rate, number of frames (`--probe`).

Several killable processes open the files. Results are kept in a JSON beside the list, so that a later or resumed run
opens new and changed files only.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from mindspeed_mm import atomic, logs
from mindspeed_mm.data.decode import media, suffixes
from mindspeed_mm.data.decode.facts import Facts, facts_of
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.data.lists.sources import read_list
from mindspeed_mm.data.workers.faults import unforeseen
from mindspeed_mm.data.workers.pool import Announce, WorkerPool
from mindspeed_mm.errors import DataError
from mindspeed_mm.files.checksum import crc32

log = logs.get(__name__)

_VERSION = 3
_EXAMPLES = 20
_SECONDS_BETWEEN_SAVES = 30.0


Share = Callable[[Callable[[], Mapping[str, Facts]]], Mapping[str, Facts]]


def alone(make: Callable[[], Mapping[str, Facts]]) -> Mapping[str, Facts]:
    """The `share` of a process alone."""
    return make()


def listed(data_path: str | Path, everything: bool = False, share: Share = alone) -> tuple[Row, ...]:
    """Rows of a list, with missing facts read from files: with `everything` (--probe) for every row that lacks some,
    else only for sources in which no row has enough facts, such as a folder of clips.

    share: calls its argument in one process and gives the result to all.
    """
    rows = read_list(data_path)
    paths = incomplete(rows, everything)
    if not paths:
        return rows
    if not everything:
        log.info(f"data: no row of its list says size and length of {len(paths)} files; they are taken from the files")
    return complete(rows, share(lambda: probe(paths, f"{str(data_path).rstrip('/')}.probe.json")))


def incomplete(rows: Iterable[Row], everything: bool = True) -> tuple[str, ...]:
    """Files of rows that lack a fact, each once; without `everything` only in sources with too few facts."""
    return tuple(dict.fromkeys(row.path for row in rows if row.lacks_facts and (everything or row.bare)))


def probe(paths: Sequence[str], cache: str | Path | None = None, processes: int | None = None, timeout_s: float = 60.0):
    """Path -> Facts. cache: JSON file of earlier results; results of unchanged files are reused.

    processes: default one per CPU, at most 32. timeout_s: limit per file in seconds.
    """
    cache = None if cache is None else Path(cache)
    known = _load(cache)
    stamps = {path: _stamp(path) for path in paths}
    facts = {path: known[path][1] for path in paths if path in known and known[path][0] == stamps[path]}
    todo = [path for path in paths if path not in facts]
    if not todo:
        return _said(facts)
    log.info(f"data: probing {len(todo)} files ({len(facts)} are known)")
    pool = WorkerPool[tuple[str, str | None], Facts](
        _probe_one,
        min(len(todo), processes or min(32, os.cpu_count() or 1)),
        lost=lambda task, item, reason: (task[0], f"{task[0]}: {reason}"),
        timeout_s=timeout_s,
    )
    saved = time.monotonic()
    try:
        found = pool.run((path, None) for path in todo)
        for path, one in zip(todo, tqdm(found, "probing", len(todo), unit="file", disable=None), strict=True):
            facts[path] = one
            known[path] = stamps[path], one
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                _save(cache, known)
                saved = time.monotonic()
    finally:
        pool.close()
        _save(cache, known)
    return _said(facts)


def _said(facts: Mapping[str, Facts]) -> Mapping[str, Facts]:
    """Logs which files have a variable frame rate."""
    variable = [path for path, one in facts.items() if one.variable]
    if variable:
        more = ", ..." if len(variable) > _EXAMPLES else ""
        log.info(
            f"data: {len(variable)} of {len(facts)} files have a variable frame rate; their frames are taken by time: "
            f"{', '.join(variable[:_EXAMPLES])}{more}"
        )
    return facts


def complete(rows: Iterable[Row], facts: Mapping[str, Facts]) -> tuple[Row, ...]:
    """Rows with missing facts filled in; facts of the annotation take precedence. A row of a bad file gets a `fault`."""
    return tuple(_completed(row, facts[row.path]) if row.lacks_facts and row.path in facts else row for row in rows)


def _completed(row: Row, facts: Facts) -> Row:
    if facts.fault is not None:
        return dataclasses.replace(row, fault=facts.fault)
    height, width = facts.height, facts.width
    if row.crop is not None and height is not None and width is not None:  # x0, x1, y0, y1, as in slices
        height = len(range(height)[row.crop[2] : row.crop[3]])
        width = len(range(width)[row.crop[0] : row.crop[1]])
    if row.height is not None and row.width is not None:
        height, width = row.height, row.width
    if row.kind == "image":  # of an animated image the first frame is used, unless the row gives num_frames
        return dataclasses.replace(row, height=height, width=width)
    row = row.timed(facts.fps if row.fps is None else row.fps)
    frames = row.num_frames
    if frames is None and facts.num_frames is not None:
        frames = max(0, facts.num_frames - row.start)
    return dataclasses.replace(row, height=height, width=width, num_frames=frames)


def _probe_one(task: tuple[str, str | None], announce: Announce) -> Facts:
    """Probes one file in a worker. task: (path, reason to skip it or None)."""
    path, fault = task
    if fault is not None:
        return Facts(fault=fault)
    announce(0)
    try:
        return facts_of(path, suffixes.kind_of(path, num_frames=2))
    except DataError as error:
        return Facts(fault=str(error))
    except Exception as error:
        return Facts(fault=unforeseen(path, error))


def _stamp(path: str) -> tuple[int, int]:
    """(size, date) of a file; zeros if it is missing."""
    try:
        status = media.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _load(cache: Path | None) -> dict[str, tuple[tuple[int, int], Facts]]:
    if cache is None or not cache.exists():
        return {}
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            return {}
        if content["checksum"] != _checksum(content["files"]):
            raise ValueError("another checksum")
        files = content["files"].items()
        return {path: ((size, date), _facts(found)) for path, (size, date, *found) in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning(f"data: {cache} is not a probe cache ({type(error).__name__}); probing all files again")
        return {}


def _facts(found: list) -> Facts:
    """What `dataclasses.astuple` made of Facts."""
    height, width, fps, num_frames, fault, variable, special = found
    return Facts(height, width, fps, num_frames, fault, variable, tuple(special))


def _save(cache: Path | None, known: dict) -> None:
    if cache is None:
        return
    files = {path: (*stamp, *dataclasses.astuple(facts)) for path, (stamp, facts) in known.items()}
    try:
        content = {"version": _VERSION, "files": files, "checksum": _checksum(files)}
        atomic.write_text(cache, json.dumps(content, ensure_ascii=False))
    except OSError as error:
        log.warning(f"data: what was probed cannot be kept for the next run: {cache}: {error.strerror}")


def _checksum(files: dict) -> int:
    """A changed digit would be another size or length, which no later check could tell."""
    return crc32(json.dumps(files).encode())
