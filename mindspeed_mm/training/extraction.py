"""Encodes a list once (`tools/extract_features.py`): stores posteriors of its clips and features of its captions.

Any number of processes share the work. They skip entries that are already stored, so the tool can be stopped and
started again with another number of processes. Samples are encoded one at a time, as in a run with --micro-batch-size
1, so that such a run gets the same bits.
"""

import collections
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from mindspeed_mm import logs, stopping
from mindspeed_mm.config.run import RunConfig
from mindspeed_mm.data.decode.shown import treatment
from mindspeed_mm.data.feed.build import joiner
from mindspeed_mm.data.feed.dataset import Tokens, fixed_draws, load_tokens
from mindspeed_mm.data.feed.samples import Sample
from mindspeed_mm.data.feed.video import VideoSource
from mindspeed_mm.data.lists.filters import Clip
from mindspeed_mm.data.stored import features, sources
from mindspeed_mm.data.stored.features import TEXT, VIDEO, Entry, PartWriter, Stamp, digest
from mindspeed_mm.data.workers.buffers import SharedBuffers
from mindspeed_mm.data.workers.faults import unforeseen
from mindspeed_mm.data.workers.pool import Announce, Lent, WorkerPool
from mindspeed_mm.errors import ConfigError, DataError
from mindspeed_mm.training.denoiser_data import DenoiserData
from mindspeed_mm.training.encoders import FrozenEncoders
from mindspeed_mm.training.features import text_settings, video_settings
from mindspeed_mm.types import Batch, TextFeatures, TokenIds

_log = logs.get(__name__)
_MOST_WAITING = 0.1  # of the time; above it the log says what may help
_NO_TEXT = TokenIds(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One crop of one clip. fault: the reason for which it cannot be encoded, or None."""

    clip: Clip
    crop: int
    fault: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Decoded:
    """A clip as a batch of one, and the special traits of its file."""

    batch: Batch
    traits: tuple[str, ...]


class Extraction:
    """Fills the feature folder of a run. Each process is a data rank; every method is collective."""

    def __init__(self, config: RunConfig, data: DenoiserData, encoders: FrozenEncoders):
        """data: built from `config`. encoders: the parts in use must have weights. Raises ConfigError without a
        feature_folder.
        """
        self.config = config
        self.data = data
        self.hosts = data.hosts
        self.parallel = data.parallel
        self.encoders = encoders
        self.folder = feature_folder(config)
        lists = [data.data]
        if config.evaluation.data_path is not None:
            lists.append(data.data.held_out(config.evaluation.data_path))
        self.clips = [clip for one in lists for clip in data.listed(one, None).clips]

    # --------------------------------------------------------------------------------------------------------------- clips

    def videos(self) -> tuple[int, int]:
        """Encodes clips that are not stored or whose file has changed.

        Returns the number of crops that all processes encoded and the number that failed.
        """
        series = self._begin(VIDEO, video_settings(self.config))
        preprocess = self.data.data.dataset_param.preprocess_parameters
        tasks = self.hosts.from_first(lambda: self._missing_videos(max(1, preprocess.fixed_crops)))
        mine = tasks[self.parallel.rank :: self.parallel.world_size]
        writer = PartWriter(self.folder, VIDEO, series, self.parallel.rank)
        bad = 0
        special: collections.Counter[str] = collections.Counter()
        strides, patch_size = self.config.model.ae.strides, self.config.model.predictor.patch_size
        join = joiner(self.data.data, 1, strides, patch_size)
        num_workers = self.data.data.dataloader_param.num_workers
        pool = WorkerPool(
            _Decoder(VideoSource(preprocess), join, num_workers),
            num_workers,
            lost=lambda task, item, reason: dataclasses.replace(task, fault=f"{task.clip.row.path}: {reason}"),
            timeout_s=preprocess.timeout,
        )
        began, waited, results = time.monotonic(), 0.0, pool.run(mine)
        with stopping.item_by_item(says=self._is_first) as request:
            try:
                for task in self._bar(mine, "clips", len(mine)):
                    asked = time.monotonic()
                    made = next(results)
                    waited += time.monotonic() - asked
                    writer.add(*self._video_entry(task, made))
                    if isinstance(made, str):
                        bad += 1
                    else:
                        special.update(made.traits)
                    if request.signal() is not None:
                        break
            finally:
                pool.close()
                writer.flush()
        self._name_special(special)
        self._name_waits(waited, time.monotonic() - began, num_workers)
        return self._total(len(mine) - bad), self._total(bad)

    def _name_special(self, mine: collections.Counter[str]) -> None:
        """Logs how many crops of all processes had each special trait. Collective."""
        everyone = sum(self.hosts.gather(mine), collections.Counter())
        if self._is_first:
            for trait, count in sorted(everyone.items()):
                _log.info(f"data: crops of clips encoded: {count}: {treatment(trait)}")

    def _name_waits(self, waited_s: float, all_s: float, num_workers: int) -> None:
        """Logs the share of the time in which the processes had no clip to encode. Collective."""
        times = self.hosts.gather((waited_s, all_s))
        share = sum(waited for waited, _ in times) / max(sum(whole for _, whole in times), 1e-9)
        if self._is_first:
            advice = "; more --num-workers may help" if share > _MOST_WAITING else ""
            _log.info(f"{VIDEO}: encoding waited for clips in {share:.0%} of the time ({num_workers} workers{advice})")

    def _missing_videos(self, crops: int) -> list[Task]:
        known = sources.done_videos(self.folder)
        stamps = {path: Stamp.of(path) for path in {clip.row.path for clip in self.clips}}
        tasks = {}
        for clip in self.clips:
            for crop in range(crops):
                key = sources.video_key(clip, crop)
                if key not in known or stamps[clip.row.path] not in (known[key].stamp, Stamp(0, 0)):
                    tasks[key] = Task(clip, crop)
        _log.info(f"{VIDEO}: {len(tasks)} crops of clips to encode, {len(self.clips) * crops - len(tasks)} are stored")
        return list(tasks.values())

    def _video_entry(self, task: Task, made: Decoded | str) -> tuple[Entry, dict]:
        path = task.clip.row.path
        key, stamp = sources.video_key(task.clip, task.crop), Stamp.of(path)
        if isinstance(made, str):
            _log.warning(f"data: bad sample, not stored: {made}")
            return Entry(key, path, stamp, made), {}
        entry = Entry(key, path, stamp)
        batch = made.batch.to(self.encoders.device)
        posterior = self.encoders.posterior(batch)
        tensors = {"mean": posterior.mean[0].cpu(), "logvar": posterior.logvar[0].cpu()}
        if self.encoders.images is not None:
            image = self.encoders.known(batch, [sources.image_draws(task.clip, task.crop)])
            tensors |= {"known": image.latents[0].cpu(), "mask": image.mask[0].cpu()}
        return entry, tensors

    # ------------------------------------------------------------------------------------------------------------ captions

    def texts(self) -> int:
        """Encodes the captions that are not stored yet, and the empty one. Returns the number encoded by all
        processes.
        """
        series = self._begin(TEXT, text_settings(self.config))
        rank, ranks = self.parallel.rank, self.parallel.world_size
        texts = {"": digest("")} if self._is_first else {}
        for clip in self.clips[rank::ranks]:
            texts |= {text: digest(text) for text in sources.possible_texts(clip.row, self.data.data.dataset_param)}
        mine = self._unstored(texts)
        tokens = load_tokens(self.data.data.dataset_param)
        writer = PartWriter(self.folder, TEXT, series, rank)
        with stopping.item_by_item(says=self._is_first) as request:
            try:
                for text in self._bar(mine, "captions", len(mine)):
                    writer.add(Entry(texts[text], text[:80]), self._text_tensors(tokens, text))
                    if request.signal() is not None:
                        break
            finally:
                writer.flush()
        return self._total(len(mine))

    def _unstored(self, texts: dict[str, str]) -> list[str]:
        known = {entry.key for _, entry in features.read_index(self.folder, TEXT)}
        everyone = self.hosts.gather(list(texts.values()))
        earlier = {key for keys in everyone[: self.parallel.rank] for key in keys}  # other processes encode these
        return [text for text, key in texts.items() if key not in known and key not in earlier]

    def _text_tensors(self, tokens: Tokens, text: str) -> dict:
        assert self.encoders.text is not None
        first, second = tokens.load(text)
        device = self.encoders.device
        found: TextFeatures = self.encoders.text(first.to(device), None if second is None else second.to(device))
        tensors = {"sequence": sources.real_tokens(found.sequence[0], found.keep[0]).cpu()}
        return tensors if found.pooled is None else {**tensors, "pooled": found.pooled[0].cpu()}

    # -------------------------------------------------------------------------------------------------------------- common

    @property
    def _is_first(self) -> bool:
        return self.parallel.is_first

    def _begin(self, part: str, settings: dict) -> int:
        """Begins or continues a part. Returns the number of this extraction's shards."""

        def begin() -> tuple[str | None, int]:
            try:
                features.write_settings(self.folder, part, settings)
                return None, features.next_series(self.folder, part)
            except DataError as error:
                return str(error), 0

        fault, series = self.hosts.from_first(begin)
        if fault is not None:
            raise DataError(fault)
        return series

    def _bar(self, items, unit: str, total: int):
        return tqdm(items, total=total, unit=f" {unit}", disable=not self._is_first)

    def _total(self, count: int) -> int:
        return sum(self.hosts.gather(count))


class _Decoder:
    """Decodes a task's clip, or returns the reason of its failure; runs in a worker."""

    def __init__(self, videos: VideoSource, join, num_workers: int):
        self._videos, self._join = videos, join
        self._buffers = SharedBuffers(num_workers)

    def __call__(self, task: Task, announce: Announce) -> Lent | Decoded | str:
        if task.fault is not None:
            return task.fault
        announce(0)
        clip, traits = task.clip, set()
        try:
            draws = fixed_draws(clip, task.crop)
            video = self._videos.load(clip, draws, task.crop, self._buffers.allocate, traits.add)
            sample = Sample(video, _NO_TEXT, None, "", clip.row.path, clip.key)
            batch = self._join([sample], [(0, 0)], allocate=self._buffers.allocate)
        except DataError as error:
            self._buffers.lend(None)
            return str(error)
        except Exception as error:
            self._buffers.lend(None)
            return unforeseen(clip.row.path, error)
        number, decoded = self._buffers.lend(batch.clips), Decoded(batch, tuple(sorted(traits)))
        return decoded if number is None else Lent(decoded, batch.clips, number)

    def take_back(self, numbers: Sequence[int]) -> None:
        self._buffers.take_back(numbers)


def feature_folder(config: RunConfig) -> Path:
    """Folder for features. Raises ConfigError if the data JSON names none."""
    folder = config.data.dataset_param.basic_parameters.feature_folder
    if folder is None:
        raise ConfigError(
            "dataset_param.basic_parameters.feature_folder of the data JSON is missing: name a folder for the features"
        )
    return Path(folder)
