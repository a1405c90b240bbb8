"""Indexes of long lists, made once per node and used by every later start (`feed/list_index.py`).

The first process of a node that needs an index makes it; the others wait for it. An index belongs to the files of the
list (path, size, date), the keys of the config that choose clips, and the program's own rules. A list that is short,
or some of whose facts come from the clips themselves, is read as ever.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from mindspeed_mm import atomic, logs
from mindspeed_mm.config.data import DatasetConfig
from mindspeed_mm.data.decode import suffixes
from mindspeed_mm.data.feed.list_index import HEADER, ListIndex, open_index, read_header
from mindspeed_mm.data.feed.list_writer import IndexWriter, write_header
from mindspeed_mm.data.lists import sources
from mindspeed_mm.data.lists.filters import FilterResult, clip_of, judged, reason_of
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.data.workers.pool import Announce, WorkerPool
from mindspeed_mm.errors import DataError
from mindspeed_mm.files.checksum import crc32

log = logs.get(__name__)

NEVER = "none"  # as folder: lists are always read
_LEAST = 2**24  # bytes of annotations, about 30,000 rows: a shorter list is read in two seconds
_TAR = 1024  # of a tar only the headers are read
# Keys of preprocess_parameters on which neither the choice of clips nor their shapes depend. Another key counts.
_NO_MATTER = (
    *("cfg", "use_aesthetic", "trigger_word", "shuffle_tags", "keep_tags", "video_reader_type", "frame_index_folder"),
    *("image_reader_type", "timeout", "fixed_crops"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Wanted:
    """An index that fits a list: where it lies, and what its header must say."""

    folder: Path
    facts: dict


def indexed(config: DatasetConfig, global_batch_size: int | None, everything: bool) -> FilterResult | None:
    """The clips of a long list, from its index, which is made if there is none; None if the list is to be read.

    everything: as of `probe.listed`. Raises DataError like `filter_rows` and the readers.
    """
    wanted = _wanted(config, everything)
    if wanted is None:
        return None
    try:
        index = _index(wanted, config, everything)
    except OSError as error:
        log.warning(
            f"data: {wanted.folder}: the list cannot have an index there ({error.strerror or error}), so every process reads "
            f"the list; choose another list_index_folder, or {NEVER!r}"
        )
        return None
    if index is None:
        return None
    log.info(f"data: the list is taken from its index {wanted.folder}")
    source = config.basic_parameters.data_path
    return index.result(config.preprocess_parameters, global_batch_size, source)


def _index(wanted: _Wanted, config: DatasetConfig, everything: bool) -> ListIndex | None:
    found = _existing(wanted)
    if found is None:
        wanted.folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(wanted.folder):
            found = _existing(wanted)
            if found is None:
                _make(wanted, config, everything)
                found = _existing(wanted)
    return found if isinstance(found, ListIndex) else None


def _existing(wanted: _Wanted) -> ListIndex | str | None:
    """The index; "unfit" if the list is known to be none for an index; None if there is none that fits."""
    if not (wanted.folder / HEADER).exists():
        return None
    try:
        header = read_header(wanted.folder)
        if any(header.get(name) != value for name, value in wanted.facts.items()):
            return None
        if any(os.path.exists(path) != there for path, there in header["first"]):
            return None
        return "unfit" if header["unfit"] else open_index(wanted.folder, header)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning(f"data: {wanted.folder}: the index of the list is damaged ({error}) and made anew")
        return None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process makes this index."""
    with open(folder.with_name(f"{folder.name}.lock"), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -------------------------------------------------------------------------------------------------------------- making


class _Unfit(Exception):
    """Clips themselves have to say facts of the list, and they may change behind an index."""


def _make(wanted: _Wanted, config: DatasetConfig, everything: bool) -> None:
    """Makes the index in a process of its own, since this one would keep the memory that rows of a large file took."""
    begin = time.monotonic()
    log.info(f"data: making an index of the list, once for all processes of this node: {wanted.folder}")
    make = functools.partial(_made, wanted, config, everything)
    pool = WorkerPool[str | None, Exception | None](make, 1, lost=lambda task, item, reason: reason)
    try:
        (fault,) = pool.run([None])
    finally:
        pool.close()
    if fault is not None:
        raise fault
    log.info(f"data: the index was made in {time.monotonic() - begin:.0f} s")


def _made(
    wanted: _Wanted, config: DatasetConfig, everything: bool, lost: str | None, announce: Announce
) -> Exception | None:
    """Why there is no index, or None. lost: what became of an earlier process."""
    if lost is not None:
        return DataError(
            f"{wanted.folder}: the index of the list was not made: {lost}; if it had too little memory, split the "
            f"annotation file into several, or set list_index_folder {NEVER!r}"
        )
    announce(0)
    try:
        _write(wanted, lambda files: _fill(files, wanted, config, everything))
    except _Unfit:
        unfit = {**wanted.facts, "first": [], "unfit": True}
        _write(wanted, lambda files: write_header(files, wanted.folder, unfit))
    except (OSError, DataError) as error:
        return error
    return None


def _write(wanted: _Wanted, fill: Callable[[atomic.Together], None]) -> None:
    with atomic.Together(wanted.folder) as files:
        fill(files)
        shutil.rmtree(wanted.folder, ignore_errors=True)
        files.commit()


def _fill(files: atomic.Together, wanted: _Wanted, config: DatasetConfig, everything: bool) -> None:
    first: list[tuple[str, bool]] = []
    preprocess = config.preprocess_parameters

    def rows() -> Iterator[Row]:
        for part in sources.parts_of(config.basic_parameters.data_path):
            if part.found and part.rows:
                first.append((part.rows[0].path, os.path.exists(part.rows[0].path)))
            for row in part.rows:
                if row.lacks_facts and (everything or row.bare):
                    raise _Unfit
                yield row

    writer = IndexWriter(files, wanted.folder)
    for row, rule in tqdm(judged(rows(), preprocess), "index of the list", unit="row", disable=None, mininterval=1):
        if rule is None:
            writer.add(clip_of(row, preprocess))
        else:
            writer.drop(rule, reason_of(row, rule))
    writer.finish({**wanted.facts, "first": first, "unfit": False})


# ------------------------------------------------------------------------------------------------ what an index depends on


def _wanted(config: DatasetConfig, everything: bool) -> _Wanted | None:
    """The index that fits a list; None if the list is short or cannot have one."""
    basic = config.basic_parameters
    if basic.list_index_folder == NEVER:
        return None
    try:
        files = sources.files_of(basic.data_path)
    except (DataError, OSError):
        return None  # the reader says what is wrong
    if (
        files is None
        or sum(file.size // (_TAR if file.path.lower().endswith(".tar") else 1) for file in files) < _LEAST
    ):
        return None
    options = {
        field.name: getattr(config.preprocess_parameters, field.name)
        for field in dataclasses.fields(config.preprocess_parameters)
        if field.name not in _NO_MATTER
    }
    facts = {
        "sources": [dataclasses.astuple(file) for file in files],
        "options": f"{options} {everything}",
        "program": _program(),
    }
    name = f"{os.path.abspath(basic.data_path)} {facts['options']}"
    folder = Path(basic.list_index_folder or _default_folder())
    folder /= f"{Path(basic.data_path).stem[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return _Wanted(folder, json.loads(json.dumps(facts)))


def _default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(tempfile.gettempdir() if cache.startswith("~") else cache) / "mindspeed_mm" / "lists"


def _program() -> str:
    """What reads and chooses rows: an index of another version of the program may hold other clips."""
    package = Path(logs.__file__).parent
    checksum = 0
    for file in sorted([*(package / "data").rglob("*.py"), *(package / "config").glob("*.py")]):
        checksum = crc32(file.read_bytes(), checksum)
    return f"{checksum} {suffixes.accepted()}"
