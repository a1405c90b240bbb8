"""Where a run's numbers go: metrics.jsonl for plots, TensorBoard and Weights & Biases if asked."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path

from mindspeed_mm.config.run import RunConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.training.metrics import StepMetrics

METRICS_FILE = "metrics.jsonl"


class JsonLines:
    """One JSON object per event, appended: {"kind": "step", "iteration": 3, ...}. `tools/plot_run.py` draws it."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)

    def step(self, metrics: StepMetrics) -> None:
        self._write("step", dataclasses.asdict(metrics))

    def values(self, iteration: int, values: dict[str, float]) -> None:
        self._write("values", {"iteration": iteration, **values})

    def _write(self, kind: str, values: dict) -> None:
        finite = {key: _json_number(value) for key, value in values.items()}
        self._file.write(json.dumps({"kind": kind, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars as TensorBoard events, every `interval` steps."""

    def __init__(self, folder: str, interval: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "--tensorboard-dir: the package tensorboard is not installed; pip install tensorboard"
            ) from None
        self._writer = SummaryWriter(folder)
        self._interval = interval

    def step(self, metrics: StepMetrics) -> None:
        if metrics.iteration % self._interval == 0:
            self.values(metrics.iteration, metrics.scalars())

    def values(self, iteration: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Scalars to a project on Weights & Biases; the key comes from `wandb login` or its environment variable."""

    def __init__(self, config: RunConfig):
        try:
            import wandb
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
    """All places that the config names; on the first rank only, elsewhere there are none."""

    def __init__(self, config: RunConfig, is_first: bool):
        self._sinks = []
        if not is_first:
            return
        report = config.report
        if config.checkpoint.save is not None:
            self._sinks.append(JsonLines(Path(config.checkpoint.save) / METRICS_FILE))
        if report.tensorboard_dir is not None:
            self._sinks.append(TensorBoard(report.tensorboard_dir, report.tensorboard_interval))
        if report.wandb_project is not None:
            self._sinks.append(WeightsAndBiases(config))

    def step(self, metrics: StepMetrics) -> None:
        for sink in self._sinks:
            sink.step(metrics)

    def values(self, iteration: int, values: dict[str, float]) -> None:
        """Numbers that do not come every step, such as evaluation losses."""
        for sink in self._sinks:
            sink.values(iteration, values)

    @contextlib.contextmanager
    def open(self):
        """Close all places at the end, also after an error."""
        try:
            yield self
        finally:
            for sink in self._sinks:
                sink.close()


def _json_number(value):
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
