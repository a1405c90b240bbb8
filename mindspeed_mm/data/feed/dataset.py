"""Turns rows into samples. A sample's frames, caption and flip depend on (seed, epoch, index) alone.

So neither the number of worker processes nor a resume changes a sample.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.config.data import DatasetConfig
from mindspeed_mm.data.feed.ledger import Substitution
from mindspeed_mm.data.feed.video import VideoSource
from mindspeed_mm.data.lists import probe
from mindspeed_mm.data.lists.filters import Clip, FilterResult, filter_rows
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.data.text import captions
from mindspeed_mm.data.text.cleaning import preprocess
from mindspeed_mm.data.text.tokens import Tokenizer, load_tokenizer
from mindspeed_mm.data.workers.buffers import Allocate
from mindspeed_mm.data.workers.faults import Unforeseen
from mindspeed_mm.errors import DataError, MMError
from mindspeed_mm.types import Posterior, TextFeatures, TokenIds

log = logs.get(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One clip, ready for a batch.

    video: [3,T,H,W] float32, or its stored posterior (no batch axis). text: [1,L] ids of the first tokenizer, or
    stored features. pooled_text: ids of the second tokenizer (None without one, or with stored features). caption: the
    text, "" if dropped. key: "TxHxW". address: the requested (epoch, index). chosen: the index that was used.
    substitutions: files that failed before.
    """

    video: Tensor | Posterior
    text: TokenIds | TextFeatures
    pooled_text: TokenIds | None
    caption: str
    path: str
    key: str
    address: tuple[int, int]
    chosen: int
    substitutions: tuple[Substitution, ...]


class Tokens:
    """Turns texts into ids; used where the encoders run during training."""

    def __init__(self, first: Tokenizer, second: Tokenizer | None):
        self._first, self._second = first, second

    @property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer | None]:
        return self._first, self._second

    def load(self, text: str) -> tuple[TokenIds, TokenIds | None]:
        return self._first([text]), self._second([text]) if self._second else None


class NoneUsable(DataError):
    """No clip of a shape was usable; lists the clips that were tried and the reasons."""

    def __init__(self, message: str, substitutions: tuple[Substitution, ...]):
        super().__init__(message, substitutions)
        self.substitutions = substitutions

    def __str__(self) -> str:
        return self.args[0]


class ClipDataset:
    """The clips of a list, by index. `build_dataset` makes one from a config."""

    def __init__(
        self, clips: tuple[Clip, ...], config: DatasetConfig, videos, texts, *, seed: int, max_tries: int = 10
    ):
        """videos: VideoSource or StoredVideos. texts: Tokens or StoredTexts. max_tries: number of unusable files in a
        row after which a sample fails with DataError.
        """
        self.clips = clips
        self.keys = tuple(clip.key for clip in clips)
        self.config = config
        self.seed = seed
        self.max_tries = max_tries
        self._videos, self._texts = videos, texts
        self._peers = _members(self.keys)
        videos.check(clips)

    def __len__(self) -> int:
        return len(self.clips)

    def item(
        self,
        index: int,
        epoch: int = 0,
        *,
        excluded: Mapping[int, str] | None = None,
        announce: Callable[[int], None] = lambda index: None,
        allocate: Allocate = torch.empty,
    ) -> Sample:
        """Sample of clip `index` in `epoch`, or of another clip of its shape if that one is unusable.

        excluded: clips to skip -> reason. announce: called with each clip before it is tried.
        """
        missed: list[Substitution] = []
        for candidate in self.candidates(index, epoch):
            try:
                if excluded and candidate in excluded:
                    raise DataError(excluded[candidate])
                announce(candidate)
                return self.sample(candidate, (epoch, index), tuple(missed), allocate)
            except DataError as error:
                traced = error.traceback if isinstance(error, Unforeseen) else ""
                missed.append(Substitution(self.clips[candidate].row.path, str(error), traced))
        raise NoneUsable(
            f"{len(missed)} files of shape {self.keys[index]} in a row cannot be used; the last reason: {missed[-1].reason}",
            tuple(missed),
        )

    def sample(
        self,
        chosen: int,
        address: tuple[int, int],
        missed: tuple[Substitution, ...] = (),
        allocate: Allocate = torch.empty,
    ) -> Sample:
        """Sample of exactly the clip `chosen`, for the place `address` (epoch, index) in the stream.

        Raises DataError for any error at this clip.
        """
        try:
            return self._sample(chosen, address, missed, allocate)
        except MMError:
            raise
        except Exception as error:
            raise Unforeseen(self.clips[chosen].row.path, error) from error

    def _sample(self, chosen: int, address: tuple[int, int], missed: tuple[Substitution, ...], allocate: Allocate):
        clip, epoch = self.clips[chosen], address[0]
        # A text seed is hashed with SHA-512, which is the same in every process.
        video = self._videos.load(clip, self.video_draws(chosen, epoch), self.crop(epoch), allocate)
        caption = self._caption(clip, random.Random(f"{self.seed}:{epoch}:{chosen}:caption"))
        text, pooled_text = self._texts.load(caption)
        return Sample(video, text, pooled_text, caption, clip.row.path, clip.key, address, chosen, missed)

    def crop(self, epoch: int) -> int:
        """Number of every clip's temporal crop in an epoch, with `fixed_crops`; else 0."""
        return epoch % (self.config.preprocess_parameters.fixed_crops or 1)

    def video_draws(self, index: int, epoch: int) -> random.Random:
        """Random draws for a clip's frames and flips: seeded by (seed, epoch, index), or with `fixed_crops` by clip
        and crop number.
        """
        if self.config.preprocess_parameters.fixed_crops:
            return fixed_draws(self.clips[index], self.crop(epoch))
        return random.Random(f"{self.seed}:{epoch}:{index}")

    def candidates(self, index: int, epoch: int) -> Iterator[int]:
        """`index`, then other clips of its shape in an order seeded by it; `max_tries` in all."""
        yield index
        peers = self._peers[self.keys[index]]
        rng = random.Random(f"{self.seed}:{epoch}:{index}:substitutes")
        places = rng.sample(range(len(peers)), min(self.max_tries, len(peers)))
        others = [int(peers[place]) for place in places if peers[place] != index]
        yield from others[: self.max_tries - 1]

    def _caption(self, clip: Clip, rng: random.Random) -> str:
        config = self.config.preprocess_parameters
        caption = captions.choose_caption(clip.row.captions, rng)
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
    config: DatasetConfig, *, global_batch_size: int | None, rows: Sequence[Row] | None = None
) -> FilterResult:
    """Reads and filters the list; logs the dropped rows and their reasons.

    global_batch_size: for the rule rare_shape (see `filter_rows`). rows: the list's rows, if they are read already.
    """
    source = config.basic_parameters.data_path
    result = filter_rows(rows or probe.listed(source), config.preprocess_parameters, global_batch_size, source)
    for line in result.lines():
        log.info(line)
    return result


def build_dataset(
    config: DatasetConfig, *, global_batch_size: int | None, seed: int, rows: Sequence[Row] | None = None
) -> ClipDataset:
    """Reads and filters the list, and loads the tokenizers.

    seed: the run's; other arguments: see `filtered_list`. Raises DataError or ConfigError for faults that affect every
    sample.
    """
    clips = filtered_list(config, global_batch_size=global_batch_size, rows=rows).usable
    videos = VideoSource(config.preprocess_parameters)
    return ClipDataset(clips, config, videos, load_tokens(config), seed=seed)


def load_tokens(config: DatasetConfig) -> Tokens:
    """Loads the tokenizers of a config."""
    key = "dataset_param.tokenizer_config"
    first = load_tokenizer(config.tokenizer_config, key, config.model_max_length)
    second = config.tokenizer_config_2
    return Tokens(first, load_tokenizer(second, f"{key}_2") if second else None)


def _members(keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Clips by shape, ascending."""
    names, numbers = np.unique(np.array(keys, dtype=object).astype(str), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers, minlength=len(names)))
    return {str(name): part for name, part in zip(names, np.split(order, ends[:-1]), strict=True)}
