"""Judge videos by their prompts: percent of right colours, directions, shapes and backgrounds.

Seen prompts are scenes of which the set has clips; unseen ones are held out (clips.py). What a video shows is measured
without looking at its prompt (measure.py); a video that shows nothing clear is wrong in everything.
"""

import argparse
import json
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without installing it

import av
import numpy as np
from clips import Scene, read_caption
from measure import Answer, measure
from tqdm import tqdm

QUESTIONS = ("colour", "direction", "shape", "background")
_SAMPLE = re.compile(r"video_(\d+)(_i\d+)?\.mp4")
Judged = list[tuple[Scene, Answer]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder of samples (video_000000.mp4 ...), or a data.txt of the set")
    parser.add_argument("--prompts", type=Path, help="file of the samples' prompts, one a line, in their order")
    parser.add_argument(
        "--shuffled",
        type=int,
        metavar="N",
        help="also shuffle the prompts among the videos N times and report the mean, the score of chance",
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="judge every Nth video only (default 1: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the scores and all answers to this file")
    options = parser.parse_args()
    try:
        pairs = (
            read_clips(options.videos) if options.videos.is_file() else read_samples(options.videos, options.prompts)
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    pairs = pairs[:: options.every]
    answers = [measure(read_video(path)) for path, _ in tqdm(pairs, desc="judging", unit="video", leave=False)]
    judged = [(scene, answer) for (_, scene), answer in zip(pairs, answers, strict=True)]
    scores = score(judged)
    show(scores)
    if options.shuffled:
        print("with shuffled prompts:")
        show(chance(judged, options.shuffled))
    if options.json:
        write_report(options.json, scores, pairs, answers)
    return 0


def judge(frames: np.ndarray, prompt: str) -> dict[str, float]:
    """For `mindspeed-mm evaluate --judge`: 1 for each question that frames uint8 [T,H,W,3] answer as the prompt asks, else
    0; {} for a prompt outside the grammar.
    """
    try:
        scene = read_caption(prompt)
    except ValueError:
        return {}
    answer = measure(frames)
    group = "unseen " if scene.held_out else ""
    return {group + question: float(getattr(scene, question) == getattr(answer, question)) for question in QUESTIONS}


def show(scores: dict[str, float]) -> None:
    """One line for each score."""
    for name, value in scores.items():
        print(f"{name} {value:.1f}")


def score(judged: Judged) -> dict[str, float]:
    """{"colour": percent, ..., "unseen colour": percent, ...}: of the seen prompts first; groups without videos are left out."""
    found = {}
    for group, held_out in (("", False), ("unseen ", True)):
        members = [(scene, answer) for scene, answer in judged if scene.held_out == held_out]
        for question in QUESTIONS if members else ():
            right = sum(getattr(scene, question) == getattr(answer, question) for scene, answer in members)
            found[group + question] = 100 * right / len(members)
    return found


def chance(judged: Judged, times: int, seed: int = 0) -> dict[str, float]:
    """Mean score when the answers are given to each other's prompts."""
    rng = random.Random(seed)
    scenes, answers = zip(*judged, strict=True)
    rounds = [score(list(zip(scenes, rng.sample(answers, len(answers)), strict=True))) for _ in range(times)]
    return {name: sum(found[name] for found in rounds) / times for name in rounds[0]}


def read_samples(folder: Path, prompts: Path | None) -> list[tuple[Path, Scene]]:
    """The samples of a folder with the scenes of their prompts. Raises ValueError if a prompt has no video."""
    if prompts is None:
        raise ValueError(f"{folder}: give --prompts for a folder of samples")
    scenes = [read_caption(line.strip()) for line in prompts.read_text(encoding="utf-8").splitlines()]
    found = {path: int(match[1]) for path in sorted(folder.glob("*.mp4")) if (match := _SAMPLE.fullmatch(path.name))}
    missing = sorted(set(range(len(scenes))) - set(found.values()))
    if missing or not scenes:
        raise ValueError(f"{folder}: no video of {len(missing)} of {len(scenes)} prompts, the first is {missing[:1]}")
    return [(path, scenes[index]) for path, index in found.items() if index < len(scenes)]


def read_clips(data_list: Path) -> list[tuple[Path, Scene]]:
    """The clips of a data.txt with the scenes of their captions."""
    pairs = []
    for line in data_list.read_text(encoding="utf-8").splitlines():
        folder, annotations = line.split(",")
        rows = json.loads(Path(annotations).read_text(encoding="utf-8"))
        pairs += [(Path(folder) / row["path"], read_caption(row["cap"])) for row in rows]
    return pairs


def read_video(path: Path) -> np.ndarray:
    """Frames [T,H,W,3] uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_report(path: Path, scores: dict[str, float], pairs: list[tuple[Path, Scene]], answers: list[Answer]) -> None:
    """Scores, and for each video its prompt and what was seen."""
    rows = [
        {
            "video": file.name,
            "prompt": scene.caption,
            "unseen": scene.held_out,
            "answer": {question: getattr(answer, question) for question in QUESTIONS},
        }
        for (file, scene), answer in zip(pairs, answers, strict=True)
    ]
    path.write_text(json.dumps({"scores": scores, "videos": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
