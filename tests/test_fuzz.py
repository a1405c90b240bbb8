"""A little of `benchmarks/fuzz.py` at every test run: nothing a stranger brings ends in a traceback, or in other values."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def fuzz():
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "config")]
    import fuzz

    yield fuzz
    for _ in range(2):
        sys.path.pop(0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("door", "tries"), [("encoders", 3), ("web", 60)])
def test_a_door_that_takes_long(fuzz, tmp_path, door, tries):
    if door == "web":
        pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    counts, examples = fuzz.run(tmp_path, 7, [door], tries=tries)
    assert examples == [], examples[0]
    assert sum(counts[door].values()) == tries


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_files_and_flags(fuzz, tmp_path):
    doors = [door for door in fuzz.DOORS if door not in ("encoders", "web")]
    counts, examples = fuzz.run(tmp_path, 7, doors, tries=40)
    assert examples == [], examples[0]
    assert counts.pop("indexes")["refused"] == 0  # a damaged index is built again
    assert all(found["refused"] > 10 for found in counts.values()), counts
