"""Turns rows into samples. A sample's frames, caption and flip depend on (seed, epoch, index) alone.

So neither the number of worker processes nor a resume changes a sample.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.config.data import DatasetConfig
from mindspeed_mm.data.decode.shown import Tell
from mindspeed_mm.data.feed.list_cache import indexed
from mindspeed_mm.data.feed.list_index import IndexedClips, kinds_of, paths_of, shapes_of, triggers_of
from mindspeed_mm.data.feed.samples import Sample
from mindspeed_mm.data.feed.video import VideoSource
from mindspeed_mm.data.lists import probe
from mindspeed_mm.data.lists.filters import Clip, FilterResult, filter_rows
from mindspeed_mm.data.text import captions
from mindspeed_mm.data.text.cleaning import preprocess
from mindspeed_mm.data.text.emptied import Emptied, emptied, emptied_of
from mindspeed_mm.data.text.tokens import Tokenizer, load_tokenizer
from mindspeed_mm.data.workers.buffers import Allocate
from mindspeed_mm.types import Posterior, TextFeatures, TokenIds

log = logs.get(__name__)


class Tokens:
    """Turns texts into ids; used where the encoders run during training."""

    def __init__(self, first: Tokenizer, second: Tokenizer | None):
        self._first, self._second = first, second

    @property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer | None]:
        return self._first, self._second

    def load(self, text: str) -> tuple[TokenIds, TokenIds | None]:
        return self._first([text]), self._second([text]) if self._second else None


class Videos(Protocol):
    """Where the videos of clips come from: `VideoSource` reads files, `StoredVideos` posteriors."""

    def check(self, clips: Iterable[Clip]) -> None: ...

    def load(
        self, clip: Clip, rng: random.Random, crop: int, allocate: Allocate, tell: Tell, /
    ) -> Tensor | Posterior: ...


class Texts(Protocol):
    """What becomes of a caption: `Tokens` makes ids, `StoredTexts` finds features."""

    def load(self, text: str, /) -> tuple[TokenIds | TextFeatures, TokenIds | None]: ...


class ClipDataset:
    """The clips of a list, by index: a `Dataset`. `build_dataset` makes one from a config."""

    def __init__(self, clips: Sequence[Clip], config: DatasetConfig, videos: Videos, texts: Texts, *, seed: int):
        """videos, texts: read the files, or stored features."""
        self.clips = clips
        self.keys, self.paths = shapes_of(clips), paths_of(clips)
        self.config = config
        self._seed = seed
        self._videos, self._texts = videos, texts
        videos.check(kinds_of(clips))
        triggers = {config.preprocess_parameters.trigger_of(word) for word in triggers_of(clips)}
        captions.check_triggers(triggers, config)

    def sample(self, index: int, epoch: int, allocate: Allocate = torch.empty) -> Sample:
        """Sample of clip `index` in `epoch`. Raises DataError if the file is unusable."""
        clip = self.clips[index]
        # A text seed is hashed with SHA-512, which is the same in every process.
        traits: set[str] = set()
        video = self._videos.load(clip, self.video_draws(index, epoch), self.crop(epoch), allocate, traits.add)
        caption = self._caption(clip, random.Random(f"{self._seed}:{epoch}:{index}:caption"))
        text, pooled_text = self._texts.load(caption)
        return Sample(video, text, pooled_text, caption, clip.row.path, clip.key, tuple(sorted(traits)))

    def crop(self, epoch: int) -> int:
        """Number of every clip's temporal crop in an epoch, with `fixed_crops`; else 0."""
        return epoch % (self.config.preprocess_parameters.fixed_crops or 1)

    def video_draws(self, index: int, epoch: int) -> random.Random:
        """Random draws for a clip's frames and flips: seeded by (seed, epoch, index), or with `fixed_crops` by clip
        and crop number.
        """
        if self.config.preprocess_parameters.fixed_crops:
            return fixed_draws(self.clips[index], self.crop(epoch))
        return random.Random(f"{self._seed}:{epoch}:{index}")

    def _caption(self, clip: Clip, rng: random.Random) -> str:
        config = self.config.preprocess_parameters
        caption = captions.choose_caption(clip.row.captions, rng)
        if config.shuffle_tags:
            caption = captions.shuffle_tags(caption, config.keep_tags, rng)
        caption = captions.with_trigger(caption, config.trigger_of(clip.row.trigger))
        if config.use_aesthetic:
            caption = captions.add_aesthetic(caption, clip.row.aesthetic, clip.row.kind, rng)
        if not self.config.enable_text_preprocessing:
            return caption
        cleaned = preprocess(caption, self.config.use_clean_caption, self.config.support_chinese)
        return captions.drop_caption(cleaned, config.cfg, rng)


def fixed_draws(clip: Clip, crop: int) -> random.Random:
    """Random draws for the frames and flips of crop number `crop` of a clip, the same in any list and run."""
    return random.Random(f"{clip.identity}:crop {crop}")


def filtered_list(
    config: DatasetConfig,
    *,
    global_batch_size: int | None,
    everything: bool = False,
    share: probe.Share = probe.alone,
) -> FilterResult:
    """Reads and filters the list, or takes it from its index; logs the dropped rows and their reasons.

    global_batch_size: for the rule rare_shape (see `filter_rows`). everything, share: see `probe.listed`.
    """
    result = indexed(config, global_batch_size, everything)
    if result is None:
        source = config.basic_parameters.data_path
        rows = probe.listed(source, everything, share)
        result = filter_rows(rows, config.preprocess_parameters, global_batch_size, source)
    for line in result.lines():
        log.info(line)
    return result


def build_dataset(config: DatasetConfig, *, global_batch_size: int | None, seed: int) -> ClipDataset:
    """Reads and filters the list, and loads the tokenizers.

    seed: the run's; global_batch_size: see `filtered_list`. Raises DataError or ConfigError for faults that affect every
    sample.
    """
    clips = filtered_list(config, global_batch_size=global_batch_size).usable
    videos = VideoSource(config.preprocess_parameters)
    return ClipDataset(clips, config, videos, load_tokens(config), seed=seed)


def emptied_captions(clips: Sequence[Clip], config: DatasetConfig) -> Emptied:
    """Captions of clips that the config's cleaning empties."""
    if isinstance(clips, IndexedClips):
        return emptied_of(*clips.captions, config)
    return emptied((clip.row for clip in clips), config)


def load_tokens(config: DatasetConfig) -> Tokens:
    """Loads the tokenizers of a config."""
    key = "dataset_param.tokenizer_config"
    first = load_tokenizer(config.tokenizer_config, key, config.model_max_length)
    second = config.tokenizer_config_2
    return Tokens(first, load_tokenizer(second, f"{key}_2") if second else None)
