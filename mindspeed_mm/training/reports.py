"""Reports of a run: metrics.jsonl for plots, TensorBoard and Weights & Biases on request."""

import collections
import contextlib
import errno
import functools
import importlib
import json
import math
import os
import time
from pathlib import Path
from typing import Protocol

from mindspeed_mm import logs
from mindspeed_mm.config.run import TrainingFlags
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.training.metrics import StepMetrics

_log = logs.get(__name__)
_MOST_WAITING = 100_000  # lines kept in memory while the disk refuses them
_LONGEST_LINE = 2**16  # bytes
_NEW_WRITER_S = 60.0
METRICS_FILE = "metrics.jsonl"


class Sink(Protocol):
    """A place for the numbers of a run. Its methods may raise; `Reports` then goes on without it."""

    def step(self, metrics: StepMetrics) -> None: ...

    def values(self, iteration: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


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

    def close(self) -> None:
        """Does nothing: the file is closed between lines."""


class TensorBoard:
    """Scalars as TensorBoard events, every `interval` steps."""

    def __init__(self, folder: str, interval: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "--tensorboard-dir: the package tensorboard is not installed; pip install tensorboard"
            ) from None
        self._make = functools.partial(SummaryWriter, folder)
        self._writer = self._make()
        self._failed = float("-inf")
        self._interval = interval

    def step(self, metrics: StepMetrics) -> None:
        if metrics.iteration % self._interval == 0:
            self.values(metrics.iteration, metrics.scalars())

    def values(self, iteration: int, values: dict[str, float]) -> None:
        if self._writer is None and time.monotonic() - self._failed > _NEW_WRITER_S:
            self._writer = self._make()
        if self._writer is None:
            raise OSError("its writer has failed; a new one is tried every minute")
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)
        except Exception:  # its thread has ended and does not recover with the disk
            self._writer, self._failed = None, time.monotonic()
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """Sends scalars to a Weights & Biases project; the key comes from `wandb login` or its environment variable."""

    def __init__(self, config: TrainingFlags):
        try:
            wandb = importlib.import_module("wandb")  # by name: no dependency of this project
        except ImportError:
            raise ConfigError("--wandb-project: the package wandb is not installed; pip install wandb") from None
        report = config.report
        self._run = wandb.init(
            project=report.wandb_project,
            name=report.wandb_name,
            dir=report.wandb_dir,
            config={name: value for name, value in config.flags if value is not None},
        )

    def step(self, metrics: StepMetrics) -> None:
        self.values(metrics.iteration, metrics.scalars())

    def values(self, iteration: int, values: dict[str, float]) -> None:
        self._run.log(values, step=iteration)

    def close(self) -> None:
        self._run.finish()


class Reports:
    """All configured reports, on the first rank only. A failing report never ends the run."""

    def __init__(self, config: TrainingFlags, is_first: bool):
        self._sinks: list[tuple[Sink, logs.Attempts]] = []
        if not is_first:
            return
        report = config.report
        if config.checkpoint.save is not None:
            file = Path(config.checkpoint.save) / METRICS_FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            self._add(JsonLines(file), str(file))
        if report.tensorboard_dir is not None:
            self._add(TensorBoard(report.tensorboard_dir, report.tensorboard_interval), report.tensorboard_dir)
        if report.wandb_project is not None:
            self._add(WeightsAndBiases(config), "Weights & Biases")

    def step(self, metrics: StepMetrics) -> None:
        for sink, attempt in self._sinks:
            attempt(functools.partial(sink.step, metrics))

    def values(self, iteration: int, values: dict[str, float]) -> None:
        """Reports values that are not computed in every step, such as evaluation losses."""
        for sink, attempt in self._sinks:
            attempt(functools.partial(sink.values, iteration, values))

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
