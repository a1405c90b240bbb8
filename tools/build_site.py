"""Build the documentation site, English and Chinese: `python tools/build_site.py --help`.

The pages are gathered in build/pages, one folder per language with the same names, and mkdocs builds each strictly. A page without
a Chinese version is shown in English. Pages on commands, flags and the Python API are made here, from the code.
"""

import dataclasses
import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a checkout without installing it

from mindspeed_mm.cli.main import COMMANDS, NAME, programs  # noqa: E402
from mindspeed_mm.errors import ConfigError, said_in_one_line  # noqa: E402
from mindspeed_mm.schema import Program, flag, flags_of  # noqa: E402
from mindspeed_mm.schema.flags import Flag  # noqa: E402
from mindspeed_mm.schema.usage import metavar  # noqa: E402

LANGUAGES = {"en": "mkdocs.yml", "zh": "mkdocs_cn.yml"}
# Pages that lie outside of docs/ -> their names on the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tests/golden/README.md": "golden.md",
}
API = {
    "mindspeed_mm.api": ("build_denoiser", "build_autoencoder", "sigma_grid", "read_clip", "read_image"),
    "mindspeed_mm.sampling.pipeline": ("T2VPipeline",),
    "mindspeed_mm.planning.report": ("plan",),
    "mindspeed_mm.models.denoiser": ("Denoiser", "Conditions"),
    "mindspeed_mm.types": ("TextFeatures",),
    "mindspeed_mm.data.feed.samples": ("Dataset", "Sample"),
    "mindspeed_mm.errors": (),
}
_LINK = re.compile(r"\[([^\]\n]*)\]\(([^()\s]+)\)")
_OTHER_LANGUAGE = re.compile(r"^\[(?:中文|中文说明|English)\]\(\S+?\.md\)[.。]?\s*", re.MULTILINE)
_ENGLISH_ONLY = '!!! note ""\n    本页目前只有英文。\n\n'


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SiteFlags:
    save: str = flag("build/site", "--save", metavar="DIR", help="folder of the site")
    pages: str = flag("build/pages", "--pages", metavar="DIR", help="folder for the gathered pages")


PROGRAM = Program(
    flags=SiteFlags,
    description="Build the documentation site, English and Chinese. A link that leads nowhere is an error.",
    remarks="Needs the packages of the extra docs: pip install -e '.[docs]'.",
    examples=("python tools/build_site.py --save build/site",),
)


def main() -> None:
    with said_in_one_line():
        flags = PROGRAM.parse(sys.argv[1:]).values
        site, pages = Path(flags.save).absolute(), Path(flags.pages).absolute()
        for folder in (site, pages):
            shutil.rmtree(folder, ignore_errors=True)
        for language, config in LANGUAGES.items():
            gather(pages / language, language)
            build(ROOT / config, pages / language, site if language == "en" else site / language)
        print(site / "index.html")


def build(config: Path, pages: Path, site: Path) -> None:
    """Runs mkdocs on gathered pages. Raises ConfigError if it, or a link, fails."""
    variables = {"SITE_PAGES": str(pages), "SITE_OUT": str(site), "NO_MKDOCS_2_WARNING": "1"}
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(config),
    ]  # with --quiet, strict sees no warning
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line and not line.startswith("INFO")]
        raise ConfigError(
            f"{config.name}: mkdocs failed: {'; '.join(lines)} (pip install -e '.[docs]' if it is missing)"
        )


def gather(folder: Path, language: str) -> None:
    """Writes all pages and images of one language."""
    for name, text in pages_of(language).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "images", folder / "images", dirs_exist_ok=True)


def pages_of(language: str) -> dict[str, str]:
    """Name on the site -> Markdown of every page."""
    sources = {f"docs/{path.relative_to(ROOT / 'docs')}" for path in (ROOT / "docs").rglob("*.md")} | set(OUTSIDE)
    names = {source: OUTSIDE.get(source, source.removeprefix("docs/")) for source in sources}
    originals = {source: name for source, name in names.items() if not source.endswith("_cn.md")}
    found = {}
    for source, name in originals.items():
        chinese = source.removesuffix(".md") + "_cn.md"
        is_english = language == "en" or not (ROOT / chinese).is_file()
        chosen = source if is_english else chinese
        text = (ROOT / chosen).read_text(encoding="utf-8")
        text = _OTHER_LANGUAGE.sub("", text)
        text = _with_links(text, Path(chosen).parent, Path(name).parent, originals)
        text = _spaced(text)
        found[name] = _below_title(text, _ENGLISH_ONLY) if is_english and language != "en" else text
    made = {"commands.md": commands_page(), "flags.md": flags_page(), "api.md": api_page()}
    found |= {name: _below_title(text, _ENGLISH_ONLY if language != "en" else "") for name, text in made.items()}
    return found | {"pages.md": list_page(found, language)}


def list_page(pages: Mapping[str, str], language: str) -> str:
    """Every page by its title, so that one which is not in the navigation yet can be found, too."""
    title = "All pages" if language == "en" else "全部页面"
    links = [f"- [{text.partition(chr(10))[0].lstrip('# ').strip()}]({name})" for name, text in sorted(pages.items())]
    return "\n".join([f"# {title}", "", *links, ""])


def _below_title(text: str, note: str) -> str:
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{note}{rest.lstrip()}"


def _with_links(text: str, at: Path, to: Path, names: Mapping[str, str]) -> str:
    """Links between files of the repository become links between pages; a file that is no page is named as text."""

    def replaced(match: re.Match) -> str:
        label, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path or re.match(r"\w+:", target):
            return match[0]
        source = os.path.normpath(at / path)
        if label.endswith(".md") and (ROOT / source).is_file():  # a file's name says little on a site
            label = (ROOT / source).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
        source = re.sub(r"_cn\.md$", ".md", source)
        name = names.get(source)
        if name is None and source.startswith("docs/images/"):
            name = source.removeprefix("docs/")
        if name is None:
            return label
        return f"[{label}]({os.path.relpath(name, to)}{mark}{anchor})"

    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _LINK.sub(replaced, part) for part in parts)


def _spaced(text: str) -> str:
    """A blank line before lists and tables that follow a paragraph at once: GitHub needs none, Python's Markdown does."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        begins = re.match(r"- |\d+\. |\|", line)
        if begins and not fenced and lines and lines[-1] and not re.match(r"\s|- |\d+\. |\||#", lines[-1]):
            lines.append("")
        lines.append(line)
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Every command with its flags, from the fields that also make --help."""
    lines = [
        "# Commands and their flags",
        "",
        f"This page is made from the code. `{NAME} COMMAND --help` prints the same.",
    ]
    lines += ["", "| command | what it does |", "|---|---|"]
    lines += [f"| [`{name}`](#{_id(name)}) | {entry.summary} |" for name, entry in _first_of_each()]
    for words, program in programs().items():
        lines += ["", f"## {NAME} {words} {{ #{_id(words)} }}", "", _text(program.description)]
        if program.examples:
            lines += ["", "```bash", *_examples(program), "```"]
        lines += _flag_tables(words, program)
        if program.remarks:
            lines += ["", _text(program.remarks)]
        if program.without_effect:
            ignored = ", ".join(f"`{name}`" for name in program.without_effect)
            lines += ["", f"Accepted without effect, since published scripts have them: {ignored}."]
    return "\n".join(lines) + "\n"


def _first_of_each():
    """(words, command) of every command; the first of its subcommands, where it has some."""
    for name, entry in COMMANDS.items():
        yield next(words for words in programs() if words.split()[0] == name), entry


def _examples(program: Program) -> list[str]:
    return [
        line.strip() if not number else f"    {line.strip()}"
        for example in program.examples
        for number, line in enumerate(example.splitlines())
    ]


def _id(words: str) -> str:
    """The anchor of a command or a section."""
    return re.sub(r"\W+", "-", words)


def _flag_tables(words: str, program: Program) -> list[str]:
    """A table per section of --help."""
    sections: dict[str, list[Flag]] = {}
    for one in flags_of(program.flags):
        sections.setdefault(one.section, []).append(one)
    lines = []
    for section, flags in sections.items():
        if section:
            lines += ["", f"### {section} {{ #{_id(words)}-{_id(section)} }}"]
        lines += ["", "| flag | value | default | what it does |", "|---|---|---|---|", *map(_row, flags)]
    return lines


def _row(one: Flag) -> str:
    return f"| {_spellings(one)} | {_value(one)} | {_default(one)} | {_text(one.help)} |"


def _spellings(one: Flag) -> str:
    others = "".join(f", also `{name}`" for name in one.facts.published)
    return f"`{one.name}`{others}"


def _value(one: Flag) -> str:
    """What may stand behind the flag."""
    if one.is_switch:
        return ""
    value = (
        ", ".join(f"`{choice}`" for choice in one.facts.choices) or f"{metavar(one)}{' ...' if one.facts.many else ''}"
    )
    return _text(value) + (f", {one.facts.range()}" if one.facts.range() else "")


def _default(one: Flag) -> str:
    if one.required:
        return "needed"
    return "" if one.is_switch or one.default in (None, "", ()) else f"`{one.default}`"


def _text(text: str) -> str:
    """Text of a help as Markdown that may stand in a cell: flags and file names in code, nothing else with a meaning."""
    parts = re.split(r"(`[^`]*`|(?<![\w-])--[\w-]+|\b\w+\.json\b)", text)
    shown = [part if part.startswith("`") else f"`{part}`" for part in parts[1::2]]
    plain = [re.sub(r"([*_|\[\]\\])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2]]
    return "".join(one + other for one, other in zip(plain, [*shown, ""], strict=True)).replace("\n", " ")


def flags_page() -> str:
    """All flags of all commands in one table, by name."""
    found: dict[tuple[str, str], tuple[Flag, list[str]]] = {}
    for words, program in programs().items():
        for one in flags_of(program.flags):
            if one.name.startswith("-"):
                found.setdefault((one.name, one.help), (one, []))[1].append(words)
    lines = [
        "# All flags",
        "",
        "This page is made from the code. A flag that means different things in different commands has several rows.",
    ]
    lines += ["", "| flag | value | default | what it does | commands |", "|---|---|---|---|---|"]
    for _, (one, commands) in sorted(found.items()):
        names = ", ".join(f"[{words}](commands.md#{_id(words)})" for words in commands)
        lines.append(f"{_row(one)} {names} |")
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """The names of the Python API, whose docstrings mkdocstrings reads."""
    lines = ["# Python API", "", "`import mindspeed_mm as mm` has the functions, `mm.T2VPipeline` and `mm.plan`.", ""]
    for module, names in API.items():
        for name in names or ("",):
            lines += [f"::: {module}{'.' * bool(name)}{name}", "    options:", "      heading_level: 2", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
