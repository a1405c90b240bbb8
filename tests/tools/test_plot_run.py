"""The plot of a run: what is read, what is smoothed, and that a picture comes out."""

import json
import math
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import plot_run


def write(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def step(iteration: int, loss: float | None, skipped: str | None = None) -> dict:
    return {
        "kind": "step", "iteration": iteration, "loss": loss, "gradient_norm": loss, "clip_threshold": 1.0,
        "learning_rate": 1e-4, "samples_per_second": 2.0, "skipped": skipped,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    rows = [step(1, 1.0), step(2, 9.0), step(3, 9.0), step(2, 0.5), step(3, None, "gradient norm nan"), step(4, 0.4)]
    return write(tmp_path / "a", [*rows, {"kind": "values", "iteration": 4, "ema eval loss": 0.3}])


def test_of_an_iteration_that_was_run_twice_the_later_counts(folder):
    run = plot_run.Run(folder)
    iterations, losses = run.series("loss")
    assert iterations == [1, 2, 3, 4]
    assert losses[:2] == [1.0, 0.5] and math.isnan(losses[2]) and losses[3] == 0.4
    assert run.skipped() == [3]


def test_smoothing_passes_over_gaps():
    assert plot_run.smoothed([2.0, math.nan, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert plot_run.smoothed([1.0, 0.0], 0.5) == pytest.approx([1.0, 1 / 3])
    assert plot_run.smoothed([1.0, 3.0], 0.0) == [1.0, 3.0]


def test_a_picture_is_drawn(folder, capsys):
    assert plot_run.main([str(folder), str(folder / "metrics.jsonl"), "--log-loss"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "run.png")
    with Image.open(folder / "run.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_what_is_no_run_is_named(tmp_path, capsys):
    assert plot_run.main([str(tmp_path)]) == 1
    assert "metrics.jsonl" in capsys.readouterr().err
    bad = write(tmp_path / "b", [step(1, 1.0), {"loss": 3}])
    assert plot_run.main([str(bad)]) == 1
    assert "metrics.jsonl, line 2: not an event of a run" in capsys.readouterr().err
    assert plot_run.main([str(tmp_path), "--smooth", "1"]) == 1
    assert capsys.readouterr().err == "error: --smooth 1: must be at least 0 and below 1\n"
