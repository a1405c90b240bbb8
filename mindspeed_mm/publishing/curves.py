"""The curves of runs: reads their metrics.jsonl, and draws them."""

import json
import math
from pathlib import Path

from mindspeed_mm.errors import DataError
from mindspeed_mm.schema import read_text

METRICS_FILE = "metrics.jsonl"
_MAX_BYTES = 2**32  # of a metrics.jsonl; a run of a million steps writes 0.3 GB


class Run:
    """Steps and other values of a run, once each, in order."""

    def __init__(self, path: Path):
        """Raises DataError, with the line, if the file is not a run's."""
        file = path / METRICS_FILE if path.is_dir() else path
        self.name = file.resolve().parent.name
        self.steps: dict[int, dict] = {}
        self.values: dict[int, dict] = {}
        for number, line in enumerate(read_text(file, _MAX_BYTES).splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                target = self.steps if row.pop("kind") == "step" else self.values
                target.setdefault(row["iteration"], {}).update(row)
            except (json.JSONDecodeError, KeyError, AttributeError):
                raise DataError(f"{file}, line {number}: not an event of a run: {line[:80]!r}") from None
        if not self.steps:
            raise DataError(f"{file}: holds no steps")

    def series(self, name: str, of: dict[int, dict] | None = None) -> tuple[list[int], list[float]]:
        """Iterations and values of a metric; non-finite values are NaN, which leaves a gap in the curve."""
        rows = [(iteration, row[name]) for iteration, row in sorted((of or self.steps).items()) if name in row]
        return [iteration for iteration, _ in rows], [math.nan if value is None else value for _, value in rows]

    def skipped(self) -> list[int]:
        return [iteration for iteration, row in sorted(self.steps.items()) if row.get("skipped")]


def smoothed(values: list[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start; NaN values are passed over."""
    total = norm = 0.0
    found = []
    for value in values:
        if math.isfinite(value):
            total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        found.append(total / norm if norm else math.nan)
    return found


def draw(runs: list[Run], smooth: float, log_loss: bool, file: Path) -> None:
    """Four panels, a colour per run, into a file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(13, 8), sharex=True, layout="constrained")
    (loss, norm), (rate, speed) = panels
    for index, run in enumerate(runs):
        colour = f"C{index}"
        _curve(loss, run, "loss", colour, smooth)
        for name in sorted({key for row in run.values.values() for key in row if key.endswith("eval loss")}):
            marker = "s" if name.startswith("ema") else "o"
            loss.plot(*run.series(name, run.values), marker, color=colour, markersize=4, label=f"{run.name}: {name}")
        _curve(norm, run, "gradient_norm", colour, smooth)
        norm.plot(*run.series("clip_threshold"), "--", color=colour, linewidth=1, label=f"{run.name}: clip limit")
        for iteration in run.skipped():
            norm.axvline(iteration, color=colour, alpha=0.3, linewidth=1)
        rate.plot(*run.series("learning_rate"), color=colour, label=run.name)
        _curve(speed, run, "samples_per_second", colour, smooth)
    norm.set_yscale("log")
    if log_loss:
        loss.set_yscale("log")
    titles = ("loss", "gradient norm (lines: skipped steps)", "learning rate", "samples per second")
    for panel, title in zip(panels.flat, titles, strict=True):
        panel.set_title(title)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    for panel in panels[1]:
        panel.set_xlabel("iteration")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _curve(panel, run: Run, name: str, colour: str, smooth: float) -> None:
    """The numbers as they are, faint, and their moving average."""
    iterations, values = run.series(name)
    panel.plot(iterations, values, color=colour, alpha=0.3, linewidth=0.8, marker="." if len(values) < 100 else None)
    panel.plot(iterations, smoothed(values, smooth), color=colour, label=run.name)
