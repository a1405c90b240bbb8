"""Draws a contact sheet of the samples with the judge's answers for each prompt.

Reads the report that `score.py --json` writes. A right answer is green, a wrong one red. Prints the scores in a line.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without installing it

import numpy as np
from clips import read_caption
from PIL import Image, ImageDraw
from score import QUESTIONS, read_video

_FRAMES = 5  # frames of each video
_SCALE = 2  # of their pixels
_TEXT = 150  # pixels of a row's caption
_MARGIN = 2
_RIGHT, _WRONG = (110, 210, 110), (240, 100, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder of samples")
    parser.add_argument("report", type=Path, help="file that score.py --json wrote")
    parser.add_argument("sheet", type=Path, help="PNG to write")
    parser.add_argument("--columns", type=int, default=2, help="videos side by side in the contact sheet")
    options = parser.parse_args()
    report = json.loads(options.report.read_text(encoding="utf-8"))
    contact_sheet(options.videos, report["videos"], options.columns).save(options.sheet)
    print(f"scores: {_in_a_line(report['scores'])}")
    print(f"look at: {options.sheet} and {options.videos / 'index.html'}, which plays the videos")


def _in_a_line(scores: dict[str, float]) -> str:
    """The seen prompts' scores, then the unseen ones'."""
    groups = {"seen": "", "unseen": "unseen "}
    parts = {
        group: ", ".join(f"{one} {scores[mark + one]:.0f} %" for one in QUESTIONS if mark + one in scores)
        for group, mark in groups.items()
    }
    return " | ".join(f"{group}: {part}" for group, part in parts.items() if part)


def contact_sheet(folder: Path, rows: list[dict], columns: int) -> Image.Image:
    """Each video's prompt and answers, and some of its frames, in `columns` columns."""
    cells = [_cell(row, read_video(folder / row["video"])) for row in rows]
    height, width = cells[0].height + _MARGIN, cells[0].width + 4 * _MARGIN
    lines = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width, lines * height), "black")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number // lines * width, number % lines * height))
    return sheet


def _cell(row: dict, frames: np.ndarray) -> Image.Image:
    shown = frames[np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)]
    shown = shown.repeat(_SCALE, axis=1).repeat(_SCALE, axis=2)
    size = shown.shape[2]
    cell = Image.new("RGB", (_TEXT + _FRAMES * (size + _MARGIN), max(size, 64)), "black")
    for place, frame in enumerate(shown):
        cell.paste(Image.fromarray(frame), (_TEXT + place * (size + _MARGIN), 0))
    draw = ImageDraw.Draw(cell)
    for line, (wanted, seen, is_right) in enumerate(judged(row)):
        text = wanted if is_right else f"{wanted}: {seen}"
        draw.text((2, 14 * line), text, fill=_RIGHT if is_right else _WRONG)
    draw.text((100, 0), "unseen" if row["unseen"] else "", fill="white")
    return cell


def judged(row: dict) -> list[tuple[str, str, bool]]:
    """For each question: what the prompt wants, what was seen, and whether that is the same."""
    scene = read_caption(row["prompt"])
    pairs = [(getattr(scene, question), row["answer"][question]) for question in QUESTIONS]
    return [(wanted, seen or "unclear", wanted == seen) for wanted, seen in pairs]


if __name__ == "__main__":
    main()
