"""The videos that are evaluated: a folder of samples with records, or any folder of videos with a file of prompts."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mindspeed_mm.data.decode.facts import facts_of
from mindspeed_mm.data.decode.readers import build_reader, read_clip
from mindspeed_mm.data.decode.suffixes import kind_of, video_suffixes
from mindspeed_mm.errors import ConfigError, DataError
from mindspeed_mm.sampling import record
from mindspeed_mm.sampling.prompt_files import read_prompts

_NUMBER = re.compile(r"\d+")
_MOST_PROMPTS = 1_000_000
MOST_FRAMES = 1000  # of a video that are measured; 1000 frames of 480p take 1.2 GB


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A video of a folder. name: of its file without suffix. prompt, seed: None if they are not known."""

    name: str
    file: Path
    prompt: str | None
    seed: int | None

    def read(self, most: int = MOST_FRAMES) -> "Video":
        """The first frames, at most `most`, as shown. Raises DataError, with the file, if it cannot be decoded."""
        path = str(self.file)
        facts = facts_of(path, kind_of(path))
        if facts.num_frames is None or facts.fps is None:
            raise DataError(f"{self.file}: {facts.fault or 'is a picture, not a video'}")
        reader = build_reader("decoder")
        return Video(read_clip(reader, path, range(min(facts.num_frames, most))), facts.fps)


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
    """frames: uint8 [T,H,W,3]. fps: frames per second."""

    frames: np.ndarray
    fps: float


def find(folder: Path, prompts: str | None) -> list[Sample]:
    """The finished videos of a folder in the order of their names.

    prompts: a file of prompts for a folder without records; line n belongs to the n-th video, or to all videos of the
    same number if each line has several. Raises ConfigError if they do not match, DataError if there is no video.
    """
    records = [entry for entry in record.read_all(folder) if entry["status"] == record.DONE]
    recorded = {Path(entry["file"]).stem: entry for entry in records if entry["file"].endswith(".mp4")}
    files = sorted(_videos(folder.iterdir()), key=_order)
    if recorded:
        files = [file for file in files if file.stem in recorded]  # not the grid
    if not files:
        raise DataError(f"{folder}: holds no videos to evaluate")
    if prompts is not None:
        texts = _texts(prompts, len(files), folder)
        return [Sample(file.stem, file, text, None) for file, text in zip(files, texts, strict=True)]
    return [_of_record(file, recorded.get(file.stem)) for file in files]


def clips(place: Path) -> list[Sample]:
    """Videos to compare with: all of a folder, at any depth."""
    files = sorted(_videos(place.rglob("*")))
    if not files:
        raise DataError(f"{place}: holds no videos to compare with")
    return [Sample(file.stem, file, None, None) for file in files]


def _videos(files: Iterable[Path]) -> list[Path]:
    suffixes = video_suffixes()
    return [file for file in files if file.suffix.lower() in suffixes and file.is_file()]


def _of_record(file: Path, entry: dict | None) -> Sample:
    if entry is None:
        return Sample(file.stem, file, None, None)
    block = entry["sample"]
    return Sample(file.stem, file, block["prompt"], block["seed"])


def _texts(prompts: str, count: int, folder: Path) -> list[str]:
    """A prompt for each of `count` videos."""
    lines = [line.prompt for line in read_prompts(prompts, _MOST_PROMPTS)]
    if count % len(lines):
        raise ConfigError(
            f"--prompts {prompts}: {len(lines)} prompts for {count} videos of {folder}; need one for each, or equally "
            "many videos for each"
        )
    return [line for line in lines for _ in range(count // len(lines))]


def _order(file: Path) -> tuple[list[int], str]:
    """By the numbers of a name, so that clip10 comes after clip9."""
    return [int(number) for number in _NUMBER.findall(file.stem)], file.name
