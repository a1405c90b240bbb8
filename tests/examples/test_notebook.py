"""The notebook runs from its first cell to its last, and shows its plots and a video."""

import base64
import os
import resource
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "notebooks" / "tour.ipynb"


@pytest.mark.docs
def test_the_tour_trains_and_shows_a_video(monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # outputs are made, not stored
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    client.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert 1 < after.ru_utime - before.ru_utime < 120  # seconds of a core, of the kernel
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3
    (video,) = [output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert b"ftypisom" in base64.b64decode(video.split("base64,")[1].split('"')[0])[:64]
