"""The plot of a run: what is read, what is smoothed, and that a picture comes out."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from mindspeed_mm.cli import plot as plotting
from mindspeed_mm.publishing import curves


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
    run = curves.Run(folder)
    iterations, losses = run.series("loss")
    assert iterations == [1, 2, 3, 4]
    assert losses[:2] == [1.0, 0.5] and math.isnan(losses[2]) and losses[3] == 0.4
    assert run.skipped() == [3]


def test_smoothing_passes_over_gaps():
    assert curves.smoothed([2.0, math.nan, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert curves.smoothed([1.0, 0.0], 0.5) == pytest.approx([1.0, 1 / 3])
    assert curves.smoothed([1.0, 3.0], 0.0) == [1.0, 3.0]


def test_a_picture_is_drawn(folder, capsys):
    plotting.plot([str(folder), str(folder / "metrics.jsonl"), "--log-loss"])
    assert capsys.readouterr().out.strip() == str(folder / "run.png")
    with Image.open(folder / "run.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50


def refusal(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as ending:
        plotting.plot([*map(str, argv)])
    assert ending.value.code == 1
    return capsys.readouterr().err


def test_what_is_no_run_is_named(tmp_path, capsys):
    assert "metrics.jsonl: no such file" in refusal(capsys, tmp_path)
    bad = write(tmp_path / "b", [step(1, 1.0), {"loss": 3}])
    assert "metrics.jsonl, line 2: not an event of a run" in refusal(capsys, bad)
    assert refusal(capsys, tmp_path, "--smooth", "1") == "error: --smooth 1: must be at least 0 and below 1\n"
    good = write(tmp_path / "c", [step(1, 1.0)])
    assert refusal(capsys, good, "--output", tmp_path / "run.xyz").startswith(f"error: --save {tmp_path / 'run.xyz'}: ")
