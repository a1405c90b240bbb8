"""Ask for every external link of docs and sources: `python tools/check_links.py --help`. A weekly job runs it; it needs the network."""

import concurrent.futures
import dataclasses
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a checkout without installing it

from mindspeed_mm.errors import said_in_one_line  # noqa: E402
from mindspeed_mm.schema import Program, flag  # noqa: E402

_LINK = re.compile(r"https?://[^\s{<>\"'`)\]}|]+")
_OWN = re.compile(r"https?://(localhost|127\.|0\.0\.0\.0|10\.|node\d|[\w.-]*example\.)")  # of examples
_UNCLEAR = (401, 403, 405, 429, 999)  # the page is there, or the server answers no programs


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinkFlags:
    timeout: float = flag(20.0, "--timeout", above=0, at_most=600, unit="seconds", help="time for an answer")
    tries: int = flag(3, "--tries", at_least=1, at_most=20, help="how often a link without an answer is asked for")


PROGRAM = Program(
    flags=LinkFlags,
    description="Ask for every external link of README, docs and sources, and print those that lead nowhere.",
    remarks="Exit code 1: a page is gone (404, 410) or a server gave no answer. A server that refuses programs (403, 429) counts "
    "as there.",
    examples=("python tools/check_links.py", "python tools/check_links.py --timeout 5 --tries 1"),
)


def links(root: Path) -> dict[str, list[str]]:
    """External link -> "file:line" of each place, in every page and source of the repository."""
    found: dict[str, list[str]] = {}
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "tests").rglob("*.md")]
    for file in sorted([*pages, *(root / "mindspeed_mm").rglob("*.py"), *(root / "examples").rglob("*.py")]):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for link in _LINK.findall(line):
                address = link.rstrip(".,;:。，；：").partition("#")[0]
                if not _OWN.match(address):
                    found.setdefault(address, []).append(f"{file.relative_to(root)}:{number}")
    return found


def fault(address: str, timeout: float, tries: int) -> str | None:
    """Why a link leads nowhere; None if it is there."""
    said = ""
    for _ in range(tries):
        request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (links of mindspeed_mm's docs)"})
        try:
            with urllib.request.urlopen(request, timeout=timeout):
                return None
        except urllib.error.HTTPError as error:
            if error.code in _UNCLEAR:
                return None
            said = f"{error.code} {error.reason}"
            if error.code < 500:
                return said
        except (OSError, ValueError) as error:  # no such host, no answer, a faulty certificate
            said = str(getattr(error, "reason", error))
    return said


def main() -> None:
    with said_in_one_line():
        flags = PROGRAM.parse(sys.argv[1:]).values
        places = links(ROOT)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda address: fault(address, flags.timeout, flags.tries), places)
            dead = {address: said for address, said in zip(places, answers, strict=True) if said is not None}
        for address, said in dead.items():
            print(f"{address}: {said} ({', '.join(places[address])})")
        print(f"{len(places)} links, {len(dead)} lead nowhere")
        sys.exit(1 if dead else 0)


if __name__ == "__main__":
    main()
