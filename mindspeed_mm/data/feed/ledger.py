"""Ledger of bad samples: unusable files, reasons and counts; ends the run if there are too many.

It also counts the samples that are not shown as they are stored, such as interlaced ones.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mindspeed_mm import atomic, logs
from mindspeed_mm.data.decode.shown import treatment
from mindspeed_mm.errors import DataError

log = logs.get(__name__)

_EXAMPLES = 3
_MIN_TRIES = 20  # before the fraction is judged
_SECONDS_BETWEEN_WRITES = 10.0

# substitutions, number of good samples, (trait, path) of special ones
_Notes = tuple[list["Substitution"], int, list[tuple[str, str]]]


class Everyone(Protocol):
    """All processes of a run; both methods are collective (`parallel/hosts.py`)."""

    def total(self, values: Sequence[int]) -> list[int]:
        """Sum over all processes of each value."""
        ...

    def gather(self, value) -> list:
        """Values of all processes by rank."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Substitution:
    """An unusable file and the reason; another file of the same shape replaced it."""

    path: str
    reason: str
    traceback: str = ""  # traceback of an unexpected error, which may be a bug in the program


@dataclasses.dataclass(slots=True)
class BadSample:
    """The last reason, and the number of times that the file was met."""

    reason: str
    count: int = 0


@dataclasses.dataclass(slots=True)
class Special:
    """Number of samples with a trait, and the first files."""

    count: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)


class Ledger:
    """Counts of one run, over all processes; a resume continues them.

    Each process notes its own samples; `sync` adds them up and writes the file. One process logs each file, once.
    """

    def __init__(
        self,
        file: str | Path | None = None,
        *,
        max_bad_fraction: float = 1.0,
        everyone: Everyone | None = None,
        counts: bool = True,
        writes: bool = True,
    ):
        """file: JSON to write. max_bad_fraction: limit as a share of the tried files. everyone: the processes of a run
        that has several. counts: False on processes that see another process's samples. writes: True on the one process
        that writes the file.
        """
        self.bad_samples: dict[str, BadSample] = {}
        self.special: dict[str, Special] = {}
        self.good = 0
        self._file = None if file is None else Path(file)
        self._max_bad_fraction = max_bad_fraction
        self._everyone = everyone
        self._counts, self._writes = counts, writes
        self._pending: _Notes = ([], 0, [])
        self._known: set[str] = set()
        self._traced = False
        self._unwritten, self._written = True, float("-inf")
        self._attempt = logs.Attempts(log, str(file))

    @property
    def tries(self) -> int:
        return self.good + sum(entry.count for entry in self.bad_samples.values())

    @property
    def bad_fraction(self) -> float:
        return 1 - self.good / self.tries if self.tries else 0.0

    def note(self, substitutions: Sequence[Substitution], good: int, traits: Sequence[tuple[str, str]] = ()) -> None:
        """Notes the substitutions, the `good` samples that were made, and their special traits (trait, path). A single
        process adds up at once.
        """
        if not self._counts:
            return
        for item in substitutions:
            if item.traceback and not self._traced:
                log.error("data: an error that nobody foresaw, at %s:\n%s", item.path, item.traceback)
                self._traced = True
            if item.path not in self._known and item.path not in self.bad_samples:
                log.warning("data: bad sample, replaced by another of its shape: %s", item.reason)
            self._known.add(item.path)
        missed, before, special = self._pending
        self._pending = (missed + list(substitutions), before + good, special + list(traits))
        if self._everyone is None:
            self.sync(write_now=False)

    def sync(self, *, write_now: bool = True) -> None:
        """Adds up the notes of all processes; collective. Raises DataError if too many files are bad."""
        self._add_up([self._pending] if self._everyone is None else self._of(self._everyone))
        too_many = self.tries >= _MIN_TRIES and self.bad_fraction > self._max_bad_fraction
        self._write(write_now or too_many)
        if too_many:
            raise DataError(
                f"{self.tries - self.good} of {self.tries} files that were tried are bad, more than --max-bad-fraction "
                f"{self._max_bad_fraction:g}; {self._where()}"
            )

    def _of(self, everyone: Everyone) -> list[_Notes]:
        """What all processes noted. Nearly always they only count good samples, and then no collective grows with them."""
        substitutions, good, special = self._pending
        good, told = everyone.total([good, len(substitutions) + len(special)])
        return [([], good, []), *(everyone.gather((substitutions, 0, special)) if told else [])]

    def close(self, substitutions: Sequence[Substitution]) -> None:
        """Notes last substitutions when a data error ends the run and other processes can no longer be reached."""
        missed, good, special = self._pending
        self._add_up([(missed + list(substitutions) if self._counts else missed, good, special)])
        self._write(True)

    def _add_up(self, everyone: Sequence["_Notes"]) -> None:
        for substitutions, good, traits in everyone:
            self.good += good
            for trait, path in traits:
                self._count(trait, path)
            for item in substitutions:
                entry = self.bad_samples.setdefault(item.path, BadSample(item.reason))
                entry.reason, entry.count = item.reason, entry.count + 1
                self._unwritten = True
        self._pending = ([], 0, [])

    def _count(self, trait: str, path: str) -> None:
        """Counts a sample; the first, the tenth, the hundredth ... of a trait is logged."""
        entry = self.special.setdefault(trait, Special())
        entry.count, self._unwritten = entry.count + 1, True
        if len(entry.examples) < _EXAMPLES and path not in entry.examples:
            entry.examples.append(path)
        if self._writes and str(entry.count).strip("0") == "1":
            log.info("data: %d samples so far: %s (%s)", entry.count, treatment(trait), ", ".join(entry.examples))

    def _write(self, now: bool) -> None:
        if self._file is None or not self._writes:
            return
        due = self._unwritten and time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES
        if now or due:
            self._unwritten, self._written = (
                not self._attempt(functools.partial(self._replace, self._file)),
                time.monotonic(),
            )

    def _replace(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(file, json.dumps(self.report(), indent=1, ensure_ascii=False))

    def report(self) -> dict:
        """Content of the file, most frequent first."""
        entries = sorted(self.bad_samples.items(), key=lambda item: (-item[1].count, item[0]))
        return {
            "tried": self.tries,
            "bad": self.tries - self.good,
            "bad_fraction": round(self.bad_fraction, 6),
            "bad_samples": [{"path": path, **dataclasses.asdict(entry)} for path, entry in entries],
            "special": {treatment(trait): dataclasses.asdict(entry) for trait, entry in sorted(self.special.items())},
        }

    def _where(self) -> str:
        if self._file is not None:
            return f"they are listed in {self._file}"
        worst = sorted(self.bad_samples.items(), key=lambda item: -item[1].count)[:3]
        return "for example " + "; ".join(entry.reason for _, entry in worst)

    def state_dict(self) -> dict:
        """Sums of the last `sync`, the same in every process."""
        return {
            "good": self.good,
            "bad_samples": {path: (entry.reason, entry.count) for path, entry in self.bad_samples.items()},
            "special": {trait: (entry.count, list(entry.examples)) for trait, entry in self.special.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        self.good = int(state["good"])
        self.bad_samples = {
            path: BadSample(reason, int(count)) for path, (reason, count) in state["bad_samples"].items()
        }
        special = state.get("special", {})  # absent in the first checkpoints
        self.special = {trait: Special(int(count), list(files)) for trait, (count, files) in special.items()}
        self._pending, self._unwritten = ([], 0, []), True
