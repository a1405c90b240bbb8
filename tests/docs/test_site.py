"""The documentation site: built strictly in both languages, every link and anchor leads somewhere, nothing is fetched."""

import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from mindspeed_mm.cli.main import programs
from mindspeed_mm.schema import flags_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))
import build_site  # noqa: E402

pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the built site."""
    pytest.importorskip("mkdocs", reason="the site needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        str(ROOT / "tools" / "build_site.py"),
        "--save",
        folder / "site",
        "--pages",
        folder / "pages",
    ]
    result = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


class Page(HTMLParser):
    """What a page links to and fetches, and its anchors. html.parser's own reader: BeautifulSoup took minutes for all pages."""

    def __init__(self, file: Path):
        super().__init__()
        self.text = file.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(self.text)
        self.ids = {attributes["id"] for _, attributes in self.tags if "id" in attributes}

    def handle_starttag(self, tag, attrs):
        kept = {
            name: value or ""
            for name, value in attrs
            if name in ("href", "src", "id", "rel", "hreflang", "class", "lang")
        }
        if kept:
            self.tags.append((tag, kept))


@pytest.fixture(scope="module")
def pages(site):
    """File -> page."""
    return {file: Page(file) for file in site.rglob("*.html")}


def dead(file: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    """Links, images and anchors of a page that lead nowhere, and addresses elsewhere that a reader's browser fetches."""
    found = []
    for tag, attributes in page.tags:
        if tag not in ("a", "img", "link", "script") or file.name == "404.html":
            continue
        target = attributes.get("href") or attributes.get("src") or ""
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            is_fetched = tag in ("img", "script") or (tag == "link" and "stylesheet" in attributes.get("rel", ""))
            found += [target] if is_fetched else []
            continue
        place = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        if not place.exists() or (
            parts.fragment and place in pages and unquote(parts.fragment) not in pages[place].ids
        ):
            found.append(target)
    return found


def test_every_link_leads_somewhere(pages):
    assert len(pages) > 50
    assert {str(file): gone for file, page in pages.items() if (gone := dead(file, page, pages))} == {}


def test_both_languages_have_the_same_pages_and_lead_to_each_other(site, pages):
    def names(folder: Path) -> set[str]:
        return {str(file.relative_to(folder)) for file in pages if file.is_relative_to(folder)}

    chinese = names(site / "zh")
    assert chinese == {name for name in names(site) if not name.startswith("zh/")}
    for name in chinese - {"404.html"}:
        for language in ("", "zh"):
            page = site / language / name
            links = [
                attributes["href"] for tag, attributes in pages[page].tags if tag == "a" and "hreflang" in attributes
            ]
            assert [(page.parent / link).resolve() for link in links] == [site / name, site / "zh" / name]
    assert '<html lang="zh"' in pages[site / "zh" / "tutorial.html"].text


def shown(page: Page) -> str:
    """The text of a page, without tags."""
    return html.unescape(re.sub(r"<[^>]*>", "", page.text))


def test_every_command_and_flag_is_described(pages, site):
    commands, flags = (shown(pages[site / name]) for name in ("commands.html", "flags.html"))
    for words, program in programs().items():
        assert f"mindspeed-mm {words}" in commands
        for one in flags_of(program.flags):
            assert one.name in commands and (one.name in flags or not one.name.startswith("-"))


def test_docstrings_are_on_the_page_of_the_api(pages, site):
    text = shown(pages[site / "api.html"])
    for said in (
        "as training sees them before its transforms",
        "T2VPipeline",
        "The layouts of a training run that fit",
        "DataError",
    ):
        assert said in text


def test_a_dead_link_fails_the_build(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the extra docs")
    build_site.gather(tmp_path / "pages", "en")
    with (tmp_path / "pages" / "faq.md").open("a") as page:
        page.write("\n[nowhere](data.md#no-such-part)\n")
    with pytest.raises(build_site.ConfigError, match=r"mkdocs\.yml: mkdocs failed: .*no-such-part"):
        build_site.build(ROOT / "mkdocs.yml", tmp_path / "pages", tmp_path / "site")
