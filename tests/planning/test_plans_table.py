"""The tables of plans in the docs are those that `benchmarks/plans.py` prints; one row of each is made again."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "docs/benchmarks/plans.md"
sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.mark.parametrize(("kind", "number"), [("h100-80g", 64), ("4090-24g", 8)])
def test_a_row_of_the_fastest_layouts_is_made_again(kind, number):
    import plans
    from table import table

    row = table([""], [plans.layout_row(kind, number)]).splitlines()[-1]
    assert row in TABLES.read_text().splitlines()


def test_a_row_of_what_a_size_of_card_trains_is_made_again():
    import plans
    from table import table

    row = table([""], [plans.size_row(24, 1, "LoRA")]).splitlines()[-1]
    assert row in TABLES.read_text().splitlines()
