#!/usr/bin/env python
"""What is made of whatever a stranger brings: mutated files and requests at every door, and what came of them.

    python benchmarks/fuzz.py [--minutes 10] [--seed 0] [--only DOOR ...]

Every input is made from the seed, its door and its number alone; each door gets the same share of the time. Columns:
`refused`: an error of ours in one line; `harmless`: read, and the values are those of the undamaged file (of texts, which
may well mean another thing: every value is within its rule); `unnoticed`: read, other values came out, and the format
has nothing that tells (safetensors, JPEG, compressed video; see `benchmarks/damage.py` and `check_dataset --checksums`);
`silent`: the same, although the format tells, or a value outside its rule; `traceback`: anything else. The goal of the last
two is 0; exit code 1 if it is missed.
"""

import argparse
import collections
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for _part in ("tests/serving", "tests/config", "tests/data", "tests", "benchmarks", ""):
    sys.path.insert(0, str(ROOT / _part))

import fuzz_media  # noqa: E402
import fuzz_texts  # noqa: E402
import fuzz_web  # noqa: E402
import fuzz_weights  # noqa: E402
from fuzz_damage import HARMLESS, SILENT, UNNOTICED, Try, Undamaged  # noqa: E402
from table import table  # noqa: E402

from mindspeed_mm.errors import MMError  # noqa: E402

REFUSED, TRACEBACK = "refused", "traceback"
OUTCOMES = (REFUSED, HARMLESS, UNNOTICED, SILENT, TRACEBACK)
_SHOWN = 3  # examples of each bad outcome at a door

DOORS: dict[str, Callable[[Path], Try]] = {
    "config": fuzz_texts.config_door,
    "flags": fuzz_texts.flags_door,
    "rows": fuzz_texts.rows_door,
    "prompts": fuzz_texts.prompts_door,
    "clips": fuzz_media.clips_door,
    "images": fuzz_media.images_door,
    "indexes": fuzz_media.indexes_door,
    "features": fuzz_media.features_door,
    "zip": fuzz_weights.zip_door,
    "safetensors": fuzz_weights.safetensors_door,
    "torch_dist": fuzz_weights.torch_dist_door,
    "encoders": fuzz_weights.encoders_door,
    "web": fuzz_web.web_door,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=DOORS, default=list(DOORS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, examples = run(Path(folder), options.seed, options.only, seconds=60 * options.minutes)
    rows = [[door, sum(found.values()), *(found[outcome] for outcome in OUTCOMES)] for door, found in counts.items()]
    print(table(["door", "tried", *OUTCOMES], rows))
    for example in examples:
        print(f"\n{example}")
    return int(bool(examples))


def run(
    folder: Path, seed: int, doors: list[str], *, seconds: float = float("inf"), tries: int = sys.maxsize
) -> tuple[dict[str, collections.Counter], list[str]]:
    """(outcomes by door, what to print of the silent ones and the tracebacks), after so many tries a door or so long."""
    attempts = {}
    for door in doors:
        (folder / door).mkdir()
        attempts[door] = DOORS[door](folder / door)
    counts = {door: collections.Counter() for door in doors}
    examples = [words for door in doors for words in _undamaged(door, attempts[door])]
    spent = dict.fromkeys(doors, 0.0)
    while sum(spent.values()) < seconds:
        left = [door for door in doors if counts[door].total() < tries]
        if not left:
            break
        door = min(left, key=spent.__getitem__)
        number, begin = counts[door].total(), time.monotonic()
        outcome, words = _tried(attempts[door], random.Random(f"{seed} {door} {number}"))
        spent[door] += time.monotonic() - begin
        counts[door][outcome] += 1
        if outcome in (SILENT, TRACEBACK) and counts[door][outcome] <= _SHOWN:
            examples.append(f"{door} {number}: {outcome}\n{words}")
    return counts, examples


def _undamaged(door: str, attempt: Try) -> list[str]:
    """What to print if a door does not take what is not damaged; flags and requests are odd by themselves."""
    outcome, words = _tried(attempt, Undamaged(0))
    if outcome == HARMLESS or door in ("flags", "web"):
        return []
    return [f"{door}: what is not damaged is {outcome}\n{words}"]


def _tried(attempt: Try, chance: random.Random) -> tuple[str, str]:
    """(outcome, words about it)."""
    try:
        return attempt(chance), ""
    except MMError as error:
        return (REFUSED, str(error)) if "\n" not in str(error) else (TRACEBACK, f"several lines: {error}")
    except Exception:
        return TRACEBACK, traceback.format_exc(limit=-6)


if __name__ == "__main__":
    sys.exit(main())
