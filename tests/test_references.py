"""What docs, messages and docstrings name is there: no text sends a reader to a file that does not exist."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("*.md", "*.py", "*.sh", "*.json", "*.yml", "*.yaml", "*.toml", "*.txt")
_TOP = "docs|tests|tools|examples|benchmarks|configs|mindspeed_mm|docker"
# A path from the top of the repository. A word with a placeholder such as <case> or {name} is no path.
_PATH = re.compile(rf"(?<![\w/.<{{-])((?:{_TOP})/[\w./-]*\w\.(?:py|sh|md|json|txt|yml|pt|safetensors))(?![\w<{{*])")
_PAGE = re.compile(r"(?<![\w/.*{<-])([\w-]+(?:/[\w-]+)*\.md)\b")
_LINK = re.compile(r"\]\(([\w./:-]+)(?:#[^)]*)?\)", re.ASCII)


def tracked() -> list[Path]:
    """The text files of the repository, golden numbers and this test left out."""
    command = ["git", "ls-files", "-co", "--exclude-standard", *TEXTS]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):  # an archive without git
        listed = [str(path.relative_to(ROOT)) for pattern in TEXTS for path in ROOT.rglob(pattern)]
    skipped = ("tests/golden/predictor", "tests/golden/data", "tests/golden/infer", "tests/golden/vae", ".venv")
    files = [ROOT / name for name in listed if not name.startswith(skipped)]
    return [path for path in files if path.is_file() and path != Path(__file__).resolve()]


def places(path: Path, name: str) -> list[Path]:
    """Where a reader of the file would look for the name."""
    return [ROOT / name, path.parent / name, ROOT / "docs" / name]


def missing(path: Path) -> list[str]:
    """Names of files in a text that lead nowhere."""
    text = path.read_text(encoding="utf-8")
    names = set(_PATH.findall(text)) | set(_PAGE.findall(text))
    if path.suffix == ".md":
        names |= {link for link in _LINK.findall(text) if not re.match(r"\w+:", link)}
    return sorted(name for name in names if not any(place.exists() for place in places(path, name)))


# What programs write into a run, a page of MindSpeed, and names that tests make up.
OF_OTHERS = {
    "data/dropped.json",
    "data/bad_samples.json",
    "docs/ops/npu_apply_fused_ema_adamw.md",
    "notes.md",
    "some/p.md",
    # pages of the site that tools/build_site.py makes or names
    *(
        "index.md",
        "commands.md",
        "flags.md",
        "api.md",
        "golden.md",
        "contributing.md",
        "changelog.md",
        "page.md",
        "pages.md",
        "_cn.md",
    ),
}


def test_every_file_that_a_text_names_exists():
    found = {str(path.relative_to(ROOT)): missing(path) for path in tracked()}
    assert {name: gone for name, gone in found.items() if set(gone) - OF_OTHERS} == {}


@pytest.mark.parametrize("text", ["see docs/nowhere.md", "`tests/no_such_test.py`", "NOWHERE.md says so"])
def test_a_name_that_leads_nowhere_is_found(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text)
    assert missing(path) != []
