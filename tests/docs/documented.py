"""The commands that README and docs show, and the flags that they give to a program of ours."""

import dataclasses
import re
import shlex
from functools import cache
from pathlib import Path

from mindspeed_mm.cli.main import NAME, programs

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_SCRIPTS = {
    "pretrain_opensoraplan1_5.sh": "train",
    "inference_t2v_1_5.sh": "sample",
    "train.sh": "train",
    "sample.sh": "sample",
}
_ENDS = {"|", ">", ">>", "&&", "||", ";", "&"}


@dataclasses.dataclass(frozen=True, slots=True)
class Documented:
    """A command of a page. program: words in `programs()`. is_whole: all that it needs is there to be read."""

    page: str
    text: str
    program: str
    flags: tuple[str, ...]
    is_whole: bool


def commands(page: Path) -> list[Documented]:
    """Commands of a page that start a program of ours."""
    text = page.read_text(encoding="utf-8")
    found = []
    for language, block in _FENCE.findall(text):
        if language in ("", "bash", "sh"):
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            found += [entry for line in lines if (entry := _read(page, line.strip(), True)) is not None]
    for inline in _INLINE.findall(_FENCE.sub("", text)):
        entry = _read(page, inline, False)
        found += [] if entry is None else [entry]
    return found


def _read(page: Path, line: str, in_block: bool) -> Documented | None:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    words = words[: next((place for place, word in enumerate(words) if word in _ENDS), len(words))]
    for place, word in enumerate(words):
        program, rest = _program(word, words[place + 1 :])
        if program is not None:
            is_cut = "..." in rest or any("<" in word for word in rest) or "FLAGS" in rest
            rest = [word for word in rest if word not in ("...", "FLAGS")]
            rest = rest[: next((number for number, word in enumerate(rest) if "<" in word), len(rest))]
            is_script = word.endswith(".sh")
            in_block = in_block and (place > 0 or word == NAME)  # not a list of files
            return Documented(
                str(page.relative_to(ROOT)), line, program, tuple(rest), in_block and not is_cut and not is_script
            )
    return None


def _program(word: str, rest: list[str]) -> tuple[str | None, list[str]]:
    """The program that a word starts, and the words behind its name."""
    if word in (NAME, "mindspeed_mm"):
        for length in (2, 1):
            if " ".join(rest[:length]) in programs():
                return " ".join(rest[:length]), rest[length:]
        known = {name.split()[0] for name in programs()}
        if rest and re.fullmatch(r"[a-z][a-z-]*", rest[0]) and rest[0] not in known:
            return rest[0], rest[1:]  # no command: the test says so
        return None, rest
    if word == "mindspeed_mm.serve":
        return "serve", rest
    name = Path(word).name
    if name in _SCRIPTS and word != name or name in doors() and word.endswith(".py"):
        return _SCRIPTS.get(name) or doors()[name], rest
    return None, rest


@cache
def doors() -> dict[str, str]:
    """Published files -> the command whose function they call."""
    found = {}
    for file in [*ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py"), *(ROOT / "examples").glob("*/*.py")]:
        match = re.search(r"^from mindspeed_mm\.cli\.\w+ import (\w+)\n\nif __name__", file.read_text(), re.MULTILINE)
        if match:
            found[file.name] = match[1].replace("_", "-")
    return found
