"""Checks a list before a run: dropped rows and their reasons, remaining shapes, and whether files can be decoded.

`tools/check_dataset.py` prints the report. It needs no model, tokenizer or device.
"""

import collections
import dataclasses
import random
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from mindspeed_mm.config.data import DataConfig, DatasetConfig
from mindspeed_mm.data.check.samples import Look, draw_samples, look
from mindspeed_mm.data.decode.shown import VARIABLE, treatment
from mindspeed_mm.data.feed.dataset import emptied_captions, filtered_list, fixed_draws
from mindspeed_mm.data.feed.list_index import kinds_of, shapes_of
from mindspeed_mm.data.feed.sampler import GroupedSampler, Order, Split
from mindspeed_mm.data.feed.video import VideoSource
from mindspeed_mm.data.lists.filters import Clip, FilterResult
from mindspeed_mm.data.text.captions import with_trigger
from mindspeed_mm.data.text.cleaning import preprocess
from mindspeed_mm.data.text.emptied import Emptied
from mindspeed_mm.data.workers.faults import unforeseen
from mindspeed_mm.data.workers.pool import Announce, WorkerPool
from mindspeed_mm.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True)
class Decoded:
    """Result of decoding and transforming one crop of a clip. fault: reason of a failure, or None."""

    path: str
    seconds: float
    fault: str | None
    clip: Clip
    look: Look | None  # None if there is a fault

    def report(self) -> dict:
        differences = self.look.differences if self.look else ()
        return {"path": self.path, "seconds": self.seconds, "fault": self.fault, "differences": list(differences)}


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """Findings about a list."""

    result: FilterResult
    emptied: Emptied
    dataset: DatasetConfig
    decoded: tuple[Decoded, ...]
    global_batch_size: int
    epoch_samples: int

    @property
    def faults(self) -> list[Decoded]:
        return [one for one in self.decoded if one.fault is not None]

    @property
    def different(self) -> list[Decoded]:
        """Samples whose rows differ from their files."""
        return [one for one in self.decoded if one.look is not None and one.look.differences]

    @property
    def dropped_fraction(self) -> float:
        return (self.result.total - len(self.result.clips)) / self.result.total

    def lines(self) -> list[str]:
        """The report, one sentence per line."""
        clips, batch = self.result.clips, self.global_batch_size
        hours = sum(clip.frames / clip.fps for clip in clips if clip.row.kind == "video") / 3600
        lines = [
            *self.result.lines(),
            f"data: {hours:.2f} hours of video are seen in an epoch, at the files' own frame rates",
            f"data: an epoch has {self.epoch_samples} samples, {self.epoch_samples // batch} steps of {batch}; "
            f"{len(clips) - self.epoch_samples} clips are left out of it (another epoch leaves out others)",
            *self.emptied.lines(),
        ]
        if self.decoded:
            seconds = sorted(one.seconds for one in self.decoded)
            lines.append(
                f"data: {len(self.decoded) - len(self.faults)} of {len(self.decoded)} samples were decoded; "
                f"median {seconds[len(seconds) // 2]:.2f} s, longest {seconds[-1]:.2f} s"
            )
        lines += [f"data: bad sample: {one.fault}" for one in self.faults]
        lines += [f"data: {one.path}: {what}" for one in self.decoded if one.look for what in one.look.differences]
        traits = collections.Counter(trait for one in self.decoded if one.look for trait in _traits(one.look))
        return lines + [
            f"data: {count} of {len(self.decoded)} samples: {trait}" for trait, count in traits.most_common()
        ]

    def draw(self, path: Path) -> None:
        """Writes a PNG with the middle frame of every decoded sample and its cleaned caption."""
        tiles = [(one.clip, one.look, self._caption(one.clip)) for one in self.decoded if one.look is not None]
        draw_samples(tiles, path)

    def _caption(self, clip: Clip) -> str:
        trigger = self.dataset.preprocess_parameters.trigger_of(clip.row.trigger)
        text = with_trigger(clip.row.captions[0], trigger)
        if not self.dataset.enable_text_preprocessing:
            return text
        return preprocess(text, self.dataset.use_clean_caption, self.dataset.support_chinese)

    def report(self) -> dict:
        """The report for a JSON file, with every dropped row."""
        return {
            **self.result.report(),
            "empty_captions": self.emptied.report(),
            "global_batch_size": self.global_batch_size,
            "epoch_samples": self.epoch_samples,
            "epoch_steps": self.epoch_samples // self.global_batch_size,
            "decoded": [one.report() for one in self.decoded],
        }


def check_list(
    config: DataConfig,
    *,
    global_batch_size: int,
    samples: int,
    seed: int = 0,
    processes: int = 0,
    probe_files: bool = False,
) -> Check:
    """Reads and filters the list of a config, and decodes `samples` clips of it, drawn with `seed`.

    processes: number of decoding processes; 0 counts as one. probe_files: like --probe of the training. Raises
    DataError if no row is left, ConfigError if the transforms cannot produce the sizes that the filter promises.
    """
    dataset = config.dataset_param
    result = filtered_list(dataset, global_batch_size=global_batch_size, everything=probe_files)
    options = config.dataloader_param
    sampler = GroupedSampler(
        shapes_of(result.clips),
        Split(global_batch_size),
        Order(seed=0, grouped=options.group_data, drop_last=options.drop_last),
    )
    videos = VideoSource(dataset.preprocess_parameters)
    videos.check(kinds_of(result.usable))
    chosen = random.Random(seed).sample(range(len(result.clips)), min(samples, len(result.clips)))
    decoded = _decode(videos, [result.clips[place] for place in sorted(chosen)], processes)
    found = emptied_captions(result.clips, dataset)
    return Check(result, found, dataset, decoded, global_batch_size, sampler.epoch_size)


def _traits(look: Look) -> Iterator[str]:
    """Special traits of a file, and how each is treated."""
    if look.facts.variable:
        yield treatment(VARIABLE)
    for trait in look.facts.traits:
        yield treatment(trait)


def _decode(videos: VideoSource, clips: list[Clip], processes: int) -> tuple[Decoded, ...]:
    timeout_s = videos.config.timeout
    pool = WorkerPool[tuple[Clip, str | None], Decoded](
        _Decoder(videos),
        processes,
        lost=lambda task, item, reason: (task[0], f"{task[0].row.path}: {reason}"),
        timeout_s=timeout_s,
    )
    try:
        tasks = ((clip, None) for clip in clips)
        return tuple(tqdm(pool.run(tasks), "decoding", len(clips), unit="clip"))
    finally:
        pool.close()


class _Decoder:
    """Turns (clip, reason to skip it or None) into Decoded, in a worker."""

    def __init__(self, videos: VideoSource):
        self._videos = videos

    def __call__(self, task: tuple[Clip, str | None], announce: Announce) -> Decoded:
        clip, fault = task
        begin = time.perf_counter()
        if fault is None:
            announce(0)
            try:
                video = self._videos.load(clip, fixed_draws(clip, 0))
                seconds = time.perf_counter() - begin
                return Decoded(clip.row.path, seconds, None, clip, look(clip, video))
            except DataError as error:
                fault = str(error)
            except Exception as error:
                fault = unforeseen(clip.row.path, error)
        return Decoded(clip.row.path, time.perf_counter() - begin, fault, clip, None)


def draw_shapes(result: FilterResult, path: Path) -> None:
    """Writes a PNG with the number of clips for each of the 40 most frequent shapes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = collections.Counter(clip.key for clip in result.clips).most_common(40)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.28 * len(shapes)), layout="constrained")
    bars = axes.barh([key for key, _ in shapes], [count for _, count in shapes], color="#3b6ea5")
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.set(
        xlabel="clips", ylabel="frames x height x width", title=f"{len(result.clips)} of {result.total} rows are used"
    )
    axes.margins(x=0.12)
    figure.savefig(path, dpi=120)
    plt.close(figure)
