"""An evaluation of finished videos: measures each, joins the figures, writes the page and VBench's layout."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mindspeed_mm import logs
from mindspeed_mm.config.evaluation import VideoFlags
from mindspeed_mm.errors import ConfigError, DataError
from mindspeed_mm.evaluation import fvd, judge, measures, page, vbench
from mindspeed_mm.evaluation.clip import Clip
from mindspeed_mm.evaluation.samples import Sample, clips, find

_log = logs.get(__name__)


@dataclasses.dataclass(slots=True)
class Measured:
    """Figures of a folder. means: over its videos. rows: of each video. judged: percent by the judge; chance: the same
    with shuffled prompts.
    """

    folder: Path
    samples: list[Sample]
    means: dict[str, float]
    rows: list[dict[str, Any]]
    judged: dict[str, float]
    chance: dict[str, float]
    fps: float

    def report(self) -> dict[str, Any]:
        """For the JSON."""
        found: dict[str, Any] = {"folder": str(self.folder), "videos": len(self.rows), "means": self.means}
        if self.judged:
            found |= {"judge": self.judged, "judge, shuffled prompts": self.chance}
        return {**found, "samples": self.rows}


class Measuring:
    """What is measured of a folder; holds the networks that the flags name."""

    def __init__(self, flags: VideoFlags, device: torch.device, seed: int):
        """Raises ConfigError or CheckpointError for what cannot be loaded, before any video is read."""
        self.flags, self.device, self.seed = flags, device, seed
        self.judge = judge.load(flags.judge) if flags.judge is not None else None
        self.clip = Clip(flags.clip, device) if flags.clip is not None else None
        self.extractor = None
        if flags.fvd_extractor is not None:
            self.extractor = fvd.Extractor(flags.fvd_extractor, flags.fvd_frames, flags.fvd_size, device)
        self._reference: list[Tensor] | None = None  # features of the real videos, once they are known

    def __call__(self, folder: Path) -> Measured:
        samples = find(folder, self.flags.prompts)
        rows, answers, chances, features = [], [], [], []
        prompts = [sample.prompt for sample in samples]
        orders = self._orders(prompts, folder)
        fps = 0.0
        for number, sample in enumerate(_bar(samples, f"measuring {folder.name}")):
            video = sample.read()
            fps = max(fps, video.fps)
            row = _measured(video, sample, self.device)
            if self.clip is not None:
                row |= self.clip(video, sample.prompt)
            if self.extractor is not None:
                features.append(self.extractor(video, str(sample.file)))
            known: dict[str, Any] = {"name": sample.name, "prompt": sample.prompt, "seed": sample.seed}
            if self.judge is not None and sample.prompt is not None:
                answers.append(judge.ask(self.judge, video.frames, sample.prompt, str(sample.file)))
                known["judge"] = answers[-1]
                for order in orders:
                    chances.append(judge.ask(self.judge, video.frames, order[number], str(sample.file)))
            rows.append({**known, "measures": row})
        means = _means([row["measures"] for row in rows])
        if self.extractor is not None:
            means |= fvd.distance(features, self._real())
        return Measured(folder, samples, means, rows, judge.scores(answers), judge.scores(chances), fps)

    def _orders(self, prompts: Sequence[str | None], folder: Path) -> list[list[str]]:
        if self.judge is None:
            return []
        known = [prompt for prompt in prompts if prompt is not None]
        if len(known) < len(prompts):
            raise ConfigError(
                f"--judge {self.flags.judge}: {len(prompts) - len(known)} of {len(prompts)} videos of {folder} have no "
                "prompt; give --prompts FILE"
            )
        return judge.shuffles(known, self.flags.shuffled, self.seed)

    def _real(self) -> list[Tensor]:
        """Features of the videos of --reference; those that are too short are left out, and counted in the log."""
        assert self.extractor is not None and self.flags.reference is not None, "the flags come together"
        if self._reference is None:
            self._reference, short = [], 0
            for sample in _bar(clips(Path(self.flags.reference)), "real videos"):
                video = sample.read(self.extractor.frames)
                if len(video.frames) < self.extractor.frames:
                    short += 1
                else:
                    self._reference.append(self.extractor(video, str(sample.file)))
            if short:
                _log.warning(f"--reference: {short} videos have fewer than {self.extractor.frames} frames, left out")
        return self._reference


def write(found: Sequence[Measured], folder: Path, with_vbench: bool) -> list[Path]:
    """Writes the page of two runs and VBench's layout of the first, if they are wanted. Returns the files."""
    written = []
    if len(found) > 1:
        others = {sample.name: sample for sample in found[1].samples}
        pairs = [(sample, others[sample.name]) for sample in found[0].samples if sample.name in others]
        if not pairs:
            raise ConfigError(
                f"--against {found[1].folder}: has no video with a name of {found[0].folder}, such as "
                f"{found[0].samples[0].name}"
            )
        alone = len(found[0].samples) + len(others) - 2 * len(pairs)
        if alone:
            _log.warning(f"{alone} videos are in one of the two folders only and not on the page")
        path = folder / "compare.html"
        page.write(path, pairs, (found[0].folder, found[1].folder), (_table(found[0]), _table(found[1])), found[0].fps)
        written.append(path)
    if with_vbench:
        written.append(vbench.write(found[0].samples, folder / "vbench"))
    return written


def table(found: Sequence[Measured]) -> list[str]:
    """Lines of a table: a row for each figure, a column for each folder."""
    columns = [_table(one) for one in found]
    names = list(dict.fromkeys(name for column in columns for name in column))
    width = max(map(len, names), default=0)
    lines = [" " * width + "".join(f"  {str(one.folder)[-24:]:>24}" for one in found)]
    for name in names:
        cells = [f"{column[name]:.4g}" if name in column else "" for column in columns]
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>24}" for cell in cells))
    return lines


def _table(one: Measured) -> dict[str, float]:
    judged = {f"judge: {name}": value for name, value in one.judged.items()}
    chance = {f"judge: {name}, shuffled prompts": value for name, value in one.chance.items() if name == "all"}
    return {"videos": len(one.rows), **one.means, **judged, **chance}


def _measured(video, sample: Sample, device: torch.device) -> dict[str, float]:
    try:
        return measures.of_video(video, device)
    except ValueError as error:
        raise DataError(f"{sample.file}: {error}") from None


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each measure over the videos that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _mean([row[name] for row in rows if name in row]) for name in names}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _bar(samples: Sequence[Sample], what: str):
    every = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log file gets fewer lines than a terminal
    return tqdm(samples, desc=what, unit="video", leave=False, mininterval=every)
