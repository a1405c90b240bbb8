"""Judges the samples of several adapter scales: percent of videos that show what is new, what is old, and both together.

new colour, new shape: prompts with one new word, which must be seen; mix: both new words, which no clip combines; old:
prompts of the base, of which colour, direction and shape must be seen.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without installing it
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quickstart"))

from clips import Scene
from measure import Answer, measure
from score import read_samples, read_video

# Group of prompts -> what a video of it must show.
QUESTIONS = {
    "new colour": ("colour",),
    "new shape": ("shape",),
    "mix": ("colour", "shape"),
    "old": ("colour", "direction", "shape"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="+", help="folders of samples, one for each scale, named by it")
    parser.add_argument("--prompts", type=Path, required=True, help="file of the prompts, one a line")
    parser.add_argument("--groups", type=Path, required=True, help="groups.json that prepare_new.py wrote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table to this file")
    options = parser.parse_args()
    groups = json.loads(options.groups.read_text(encoding="utf-8"))
    table = {}
    for folder in options.samples:
        judged = [(scene, measure(read_video(path))) for path, scene in read_samples(folder, options.prompts)]
        table[folder.name] = score(judged, groups)
    print("| scale | " + " | ".join(QUESTIONS) + " |")
    print("|---|" + "--:|" * len(QUESTIONS))
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{row[group]:.1f}" for group in QUESTIONS) + " |")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


def score(judged: list[tuple[Scene, Answer]], groups: dict[str, list[str]]) -> dict[str, float]:
    """Percent of each group's videos that show all they must."""
    found = {}
    for group, questions in QUESTIONS.items():
        members = [(scene, answer) for scene, answer in judged if scene.caption in groups[group]]
        right = sum(
            all(getattr(scene, name) == getattr(answer, name) for name in questions) for scene, answer in members
        )
        found[group] = 100 * right / max(1, len(members))
    return found


if __name__ == "__main__":
    sys.exit(main())
