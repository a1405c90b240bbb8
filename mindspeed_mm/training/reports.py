"""Reports of a run: metrics.jsonl for plots, and the trackers that are asked for."""

import collections
import contextlib
import errno
import functools
import json
import math
import os
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.config.run import TrainingFlags
from mindspeed_mm.training import trackers
from mindspeed_mm.training.metrics import StepMetrics
from mindspeed_mm.training.trackers import Sink

_log = logs.get(__name__)
_MOST_WAITING = 100_000  # lines kept in memory while the disk refuses them
_LONGEST_LINE = 2**16  # bytes
METRICS_FILE = "metrics.jsonl"


class JsonLines:
    """One JSON object per event, appended: {"kind": "step", "iteration": 3, ...}. `tools/plot_run.py` draws it."""

    def __init__(self, path: Path):
        self._path = path
        self._waiting: collections.deque[bytes] = collections.deque(maxlen=_MOST_WAITING)
        _cut_torn_line(path)

    def step(self, metrics: StepMetrics) -> None:
        self._write("step", metrics.record())

    def values(self, iteration: int, values: dict[str, float]) -> None:
        self._write("values", {"iteration": iteration, **values})

    def _write(self, kind: str, values: dict) -> None:
        """Writes a line. Raises OSError; the line is kept for the next attempt."""
        finite = {key: _json_number(value) for key, value in values.items()}
        self._waiting.append((json.dumps({"kind": kind, **finite}) + "\n").encode())
        with open(self._path, "ab", buffering=0) as file:
            while self._waiting:
                line, start = self._waiting[0], file.seek(0, os.SEEK_END)
                if file.write(line) < len(line):
                    file.truncate(start)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._waiting.popleft()

    def samples(self, iteration: int, folder: Path) -> None:
        """Does nothing: the videos are files beside this one."""

    def close(self) -> None:
        """Does nothing: the file is closed between lines."""


class Reports:
    """All configured reports, on the first rank only. A failing report never ends the run."""

    def __init__(self, config: TrainingFlags, is_first: bool):
        self._sinks: list[tuple[Sink, logs.Attempts]] = []
        if not is_first:
            return
        if config.checkpoint.save is not None:
            file = Path(config.checkpoint.save) / METRICS_FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            self._add(JsonLines(file), str(file))
        for name, tracker in trackers.opened(config):
            self._add(tracker, name)

    def step(self, metrics: StepMetrics) -> None:
        for sink, attempt in self._sinks:
            attempt(functools.partial(sink.step, metrics))

    def values(self, iteration: int, values: dict[str, float]) -> None:
        """Reports values that are not computed in every step, such as evaluation losses."""
        for sink, attempt in self._sinks:
            attempt(functools.partial(sink.values, iteration, values))

    def samples(self, iteration: int, folder: Path) -> None:
        """Reports the videos that were sampled into `folder`."""
        for sink, attempt in self._sinks:
            attempt(functools.partial(sink.samples, iteration, folder))

    @contextlib.contextmanager
    def open(self):
        """Opens the reports; closes all of them on exit, also after an error."""
        try:
            yield self
        finally:
            for sink, attempt in self._sinks:
                if attempt.failing:  # already reported
                    with contextlib.suppress(Exception):
                        sink.close()
                else:
                    attempt(sink.close)

    def _add(self, sink: Sink, name: str) -> None:
        self._sinks.append((sink, logs.Attempts(_log, name)))


def _cut_torn_line(path: Path) -> None:
    """Removes the incomplete last line that a killed run left in a file."""
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _LONGEST_LINE)
        file.seek(start)
        end = file.read()
        if end and not end.endswith(b"\n"):
            file.truncate(start + end.rfind(b"\n") + 1)


def _json_number(value):
    """Replaces NaN and infinity, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
