"""Each page for users exists in English and Chinese, and both say the same: the same parts, code, flags, files and figures."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAIRS = sorted(page.name.removesuffix("_cn.md") for page in DOCS.glob("*_cn.md"))
# Evidence and rules for developers, and pages that are made from the code, are in English alone.
ENGLISH = ("parity", "golden", "contributing", "changelog", "api", "commands", "flags", "pages", "index", "benchmarks/")


def texts(name: str) -> tuple[str, str]:
    return tuple((DOCS / f"{name}{suffix}.md").read_text(encoding="utf-8") for suffix in ("", "_cn"))


def code(page: str) -> list[str]:
    """Blocks of code; their comments may be translated."""
    blocks = re.findall(r"^```.*?^```|^    \S.*?$", page, re.DOTALL | re.MULTILINE)
    return [re.sub(r"(?m)(^|[ ]+)# .*$", "", block) for block in blocks]


def shape(page: str) -> list[str]:
    """The lines that begin a heading, a row of a table or an item of a list; rows with their number of cells."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    found = []
    for line in page.splitlines():
        if line.startswith("|"):
            found.append(f"row of {re.sub(r'`[^`]*`', '', line).count('|')}")
        elif match := re.match(r"#+ |- |\d+\. ", line):
            found.append(match[0])
    return found


def names(page: str) -> set[str]:
    """Flags, files, keys and expressions in inline code."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    spans = {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", page)}
    return {span for span in spans if re.search(r"[-_./=]", span)}


def figures(page: str) -> list[str]:
    """Numbers with a decimal point, but for those of millions and billions: Chinese counts in 10^4 and 10^8."""
    page = re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", "", page, flags=re.DOTALL | re.MULTILINE)
    return sorted(re.findall(r"\d+\.\d+\b(?! 亿| B\b)", page))


@pytest.mark.parametrize("name", PAIRS)
def test_both_languages_say_the_same(name):
    english, chinese = texts(name)
    assert code(english) == code(chinese)
    assert shape(english) == shape(chinese)
    assert names(english) ^ names(chinese) == set()
    assert figures(english) == figures(chinese)


@pytest.mark.parametrize("name", PAIRS)
def test_the_pages_lead_to_each_other(name):
    english, chinese = texts(name)
    assert f"]({name}_cn.md)" in english.split("\n## ")[0] and f"]({name}.md)" in chinese.split("\n## ")[0]
    others = {found for found in re.findall(r"\]\(([\w]+)\.md[)#]", chinese) if found in PAIRS and found != name}
    assert others == set(), "a Chinese page leads to English ones that have a Chinese version"


def test_every_page_for_users_has_a_chinese_version():
    listed = re.findall(r": ([\w/]+)\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in listed if not name.startswith(ENGLISH) and name not in PAIRS] == []
    assert len(listed) > 25


def test_a_page_that_drifts_is_noticed():
    english, chinese = texts("finetuning")
    assert shape(english) != shape(chinese.replace("| 0.5 |", "| 0.5 | |", 1))
    assert names(english) != names(chinese.replace("`--adapter-rank`", "`--adapter-ranks`"))
    assert figures(english) != figures(chinese.replace("87.5", "78.5"))
