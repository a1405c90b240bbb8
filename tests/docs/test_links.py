"""The tool that asks for external links finds them, and says which lead nowhere; a local server stands for the network."""

import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, serving

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))
import check_links  # noqa: E402


def test_links_are_found_with_their_places(tmp_path):
    page = tmp_path / "docs" / "notes.md"
    page.parent.mkdir()
    page.write_text("see [it](https://a.org/x#part).\n`http://127.0.0.1:1/` https://a.org/x，\n")
    assert check_links.links(tmp_path) == {
        "https://a.org/x": [f"{page.relative_to(tmp_path)}:{line}" for line in (1, 2)]
    }
    assert len(check_links.links(ROOT)) >= 5


@pytest.mark.parametrize(("name", "gone"), [("org/name", False), ("org/other", True)])
def test_a_page_that_is_gone_is_said(name, gone):
    with serving({"org/name": {"a": b"1"}}) as server:
        found = check_links.fault(f"{server.endpoint}/{name}/resolve/{COMMIT}/a", 5, 1)
    assert (found is not None) == gone and (not gone or "404" in str(found))


def test_a_server_that_does_not_answer_is_said():
    assert "refused" in str(check_links.fault("http://127.0.0.1:9/", 1, 2))
