"""Reads clips and captions of a list from stored features; replaces VideoSource and Tokens."""

import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from mindspeed_mm.config.data import DatasetConfig
from mindspeed_mm.data.decode.shown import Tell, ignore
from mindspeed_mm.data.lists.filters import Clip
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.data.stored.features import TEXT, VIDEO, Entry, PartReader, Stamp, digest, read_index
from mindspeed_mm.data.text import captions
from mindspeed_mm.data.text.cleaning import preprocess
from mindspeed_mm.data.workers.buffers import Allocate
from mindspeed_mm.errors import DataError
from mindspeed_mm.types import ImageFeatures, Posterior, TextFeatures

_TEXTS_CHECKED = 2000  # at the start of a run; cleaning a caption takes about a millisecond
_STAT_THREADS = 16  # a network disk answers one request in milliseconds, but many at once


def video_key(clip: Clip, crop: int) -> str:
    """Key of one temporal crop (and flip) of a clip."""
    return digest(f"{clip.identity}:crop {crop}")


def possible_texts(row: Row, config: DatasetConfig) -> set[str]:
    """All texts that a row's caption can become: with its trigger word, with each aesthetic sentence on either side,
    cleaned; "" if dropped. Shuffled tags are too many to store; a run that loads text features refuses them.
    """
    parameters = config.preprocess_parameters
    texts = {captions.with_trigger(text, parameters.trigger_of(row.trigger)) for text in row.captions}
    if config.preprocess_parameters.use_aesthetic:
        texts = {other for text in texts for other in captions.with_aesthetic(text, row.aesthetic, row.kind)}
    if not config.enable_text_preprocessing:
        return texts
    texts = {preprocess(text, config.use_clean_caption, config.support_chinese) for text in texts}
    return texts | {""} if config.preprocess_parameters.cfg > 0 else texts


def image_draws(clip: Clip, crop: int) -> random.Random:
    """Random numbers that draw what is known of a crop of a clip, the same in any list and run."""
    return random.Random(f"{clip.identity}:crop {crop}:image condition")


class StoredVideos:
    """Posteriors of clips from the autoencoder."""

    def __init__(self, folder: Path, images: bool = False):
        """images: also what was known of each clip, for a run with image conditions."""
        self._part = PartReader(folder, VIDEO)
        self._names = ("mean", "logvar", "known", "mask") if images else ("mean", "logvar")

    def check(self, clips: Iterable[Clip]) -> None:
        """Does nothing: `missing_videos` and `changed_files` check all clips."""

    def load(
        self,
        clip: Clip,
        rng: random.Random,
        crop: int,
        allocate: Allocate = torch.empty,
        tell: Tell = ignore,
    ) -> Posterior:
        """mean and logvar, each [C,t,h,w], for crop number `crop`; rng, allocate and tell are unused here."""
        mean, logvar, *image = self._part.load(video_key(clip, crop), self._names, clip.row.path)
        return Posterior(mean, logvar, ImageFeatures(*image) if image else None)


class StoredTexts:
    """Text features, found by text."""

    def __init__(self, folder: Path, max_length: int, pooled: bool = True):
        """pooled: False if the texts were encoded without a second encoder."""
        self._part = PartReader(folder, TEXT)
        self._max_length = max_length
        self._names = ("sequence", "pooled") if pooled else ("sequence",)

    def load(self, text: str) -> tuple[TextFeatures, None]:
        """Features [1,L,D] of one text; zeros at padding, which the denoiser ignores."""
        sequence, *pooled = self._part.load(digest(text), self._names, repr(text[:80]))
        length, width = sequence.shape
        whole = sequence.new_zeros(1, self._max_length, width)
        whole[0, :length] = sequence
        keep = torch.zeros(1, self._max_length, dtype=torch.bool)
        keep[0, :length] = True
        return TextFeatures(whole, keep, *(vector[None] for vector in pooled)), None


def real_tokens(sequence: Tensor, keep: Tensor) -> Tensor:
    """Tokens [n,D] of sequence [L,D] and keep [L] without the padding at the end."""
    length = int(keep.sum())
    if not keep[:length].all():
        raise DataError("the tokenizer pads its texts at the front; stored features need the padding at the end")
    return sequence[:length]


# ------------------------------------------------------------------------------------------------ is the store complete?


def changed_files(folder: Path, clips: Sequence[Clip]) -> list[str]:
    """Files that have changed since their features were stored. A missing file does not count as changed."""
    paths = {clip.row.path for clip in clips}
    stamps: dict[str, Stamp] = {}
    for _, entry in read_index(folder, VIDEO):
        if entry.source in paths and entry.stamp is not None:
            stamps[entry.source] = entry.stamp
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        now = dict(zip(stamps, pool.map(Stamp.of, stamps), strict=True))
    return [path for path, stamp in stamps.items() if now[path] not in (stamp, Stamp(0, 0))]


def check_videos(folder: Path, clips: Sequence[Clip], crops: int) -> None:
    """Raises DataError if clips have no stored features, or if their files have changed since."""
    part = PartReader(folder, VIDEO)
    missing = [clip.row.path for clip in clips if not all(video_key(clip, crop) in part for crop in range(crops))]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(clips)} clips have no stored video features of {crops} crops (fixed_crops), "
            f"for example {missing[0]}; run tools/extract_features.py, which adds what is missing"
        )
    changed = changed_files(folder, clips)
    if changed:
        raise DataError(
            f"{folder}: the stored video features are stale, {len(changed)} files have changed since, for example "
            f"{changed[0]}; run tools/extract_features.py, which encodes them again"
        )


def check_texts(folder: Path, clips: Sequence[Clip], config: DatasetConfig) -> None:
    """Raises DataError if captions have no stored features; of a long list checks evenly spread clips."""
    part = PartReader(folder, TEXT)
    for clip in clips[:: max(1, len(clips) // _TEXTS_CHECKED)]:
        for text in sorted(possible_texts(clip.row, config)):
            if digest(text) not in part:
                raise DataError(
                    f"{folder}: {clip.row.path}: no stored text features of its caption {text[:80]!r}; "
                    "run tools/extract_features.py, which adds what is missing"
                )


def done_videos(folder: Path) -> dict[str, Entry]:
    """Stored entries by key."""
    return {entry.key: entry for _, entry in read_index(folder, VIDEO)}
