"""docs/operations.md promises nothing without a test, and both languages name the same ones."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def named(document: str) -> list[str]:
    return re.findall(r"`(test_\w+)`", (ROOT / "docs" / document).read_text(encoding="utf-8"))


def test_every_test_that_the_page_names_exists():
    there = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    names = named("operations.md")
    assert len(names) > 12
    assert [name for name in names if name not in there] == []
    assert named("operations_cn.md") == names
