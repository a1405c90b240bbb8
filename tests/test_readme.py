"""README.md and README_cn.md say the same, and their table of memory is what the network's parameters give."""

import math
import re
from pathlib import Path

import pytest

from mindspeed_mm import families

ROOT = Path(__file__).resolve().parents[1]
PAGES = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_cn.md")]


def test_both_languages_have_the_same_code():
    english, chinese = (re.findall(r"```.*?```", page, re.DOTALL) for page in PAGES)
    assert english == chinese


def test_both_languages_have_the_same_parts():
    def shape(page: str) -> list[str]:
        page = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
        lines = [re.match(r"#+ |\|[-:|]+\||\*\*|- ", line) for line in page.splitlines()]
        return [match[0] for match in lines if match]

    assert shape(PAGES[0]) == shape(PAGES[1])


def test_both_languages_name_the_same_flags_and_files():
    english, chinese = (set(re.findall(r"`([^`\n]*[-_./=][^`\n]*)`", page)) for page in PAGES)
    assert english == chinese


@pytest.mark.parametrize("page", PAGES, ids=["English", "Chinese"])
def test_the_table_of_memory_is_computed(page):
    config = families.read_file(ROOT / "examples" / "opensoraplan1.5" / "model_opensoraplan1_5.json")
    parameters = families.of_config(config).parameters(config).values()
    for tensor_size in (1, 2, 4, 8):
        count = sum(math.prod(fact.shape) // (1 if fact.dim is None else tensor_size) for fact in parameters)
        # bf16 weights 2 bytes, fp32 gradients 4; main weights, two moments and EMA, 4 each, shared over DP
        bytes_each = [2, *(2 + 4 + 16 / data_size for data_size in (1, 8, 64))]
        row = " | ".join(f"{count * each / 2**30:.1f}" for each in bytes_each)
        assert f"| {tensor_size} | {row} |" in page
