"""Rows -> samples. What a sample is depends on (seed, epoch, index) alone: which frames, which caption, flipped or not.
So neither the number of worker processes nor a stop and resume changes it.
"""

import dataclasses
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.config.data import DatasetConfig
from mindspeed_mm.config.transforms import ToTensorAfterResize, ToTensorVideo
from mindspeed_mm.data import captions, frames
from mindspeed_mm.data.filters import Clip, filter_rows
from mindspeed_mm.data.index import read_list
from mindspeed_mm.data.readers import build_reader, read_clip, read_image
from mindspeed_mm.data.tokens import Tokenizer, load_tokenizer
from mindspeed_mm.data.transforms import Pipeline, build_pipeline
from mindspeed_mm.errors import ConfigError, DataError
from mindspeed_mm.types import TokenIds

log = logs.get(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Substitution:
    """A file that could not be used, and why; another one of the same shape came in its place."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One clip, ready to be put into a batch.

    video: [3,T,H,W] float32; text, pooled_text: [1,L] ids for the first and second tokenizer (None without a second);
    caption: what was tokenized, "" if dropped; key: "TxHxW"; address: (epoch, index) that was asked for; substitutions:
    files that were tried before this one.
    """

    video: Tensor
    text: TokenIds
    pooled_text: TokenIds | None
    caption: str
    path: str
    key: str
    address: tuple[int, int]
    substitutions: tuple[Substitution, ...]


class ClipDataset:
    """The clips of a list, by index. `build_dataset` makes one from a config."""

    def __init__(
        self,
        clips: tuple[Clip, ...],
        config: DatasetConfig,
        tokenizer: Tokenizer,
        tokenizer_2: Tokenizer | None,
        *,
        seed: int,
        max_tries: int = 10,
    ):
        """max_tries: how many files in a row may be unusable before a sample is given up with a DataError."""
        self.clips = clips
        self.keys = tuple(clip.key for clip in clips)
        self.config = config
        self.seed = seed
        self.max_tries = max_tries
        self._tokenizer, self._tokenizer_2 = tokenizer, tokenizer_2
        pipelines = config.preprocess_parameters.train_pipeline
        self._pipelines = {"video": build_pipeline(pipelines.video), "image": build_pipeline(pipelines.image)}
        _check_pipelines(clips, self._pipelines)
        preprocess = config.preprocess_parameters
        self._reader = build_reader(preprocess.video_reader_type, preprocess.frame_index_folder)

    def __len__(self) -> int:
        return len(self.clips)

    def item(self, index: int, epoch: int = 0) -> Sample:
        """The sample of clip `index` in `epoch`, or of another clip of its shape if that one cannot be used."""
        missed: list[Substitution] = []
        for candidate in self._candidates(index, epoch):
            try:
                return self._sample(candidate, epoch, (epoch, index), tuple(missed))
            except DataError as error:
                missed.append(Substitution(self.clips[candidate].row.path, str(error)))
        raise DataError(
            f"{len(missed)} files of shape {self.keys[index]} in a row cannot be used; the last reason: {missed[-1].reason}"
        )

    def _candidates(self, index: int, epoch: int) -> Iterator[int]:
        """`index`, then other clips of its shape in an order of its own, `max_tries` in all."""
        yield index
        peers = [other for other, key in enumerate(self.keys) if key == self.keys[index] and other != index]
        rng = random.Random(f"{self.seed}:{epoch}:{index}:substitutes")
        yield from rng.sample(peers, min(self.max_tries - 1, len(peers)))

    def _sample(self, index: int, epoch: int, address: tuple[int, int], missed: tuple[Substitution, ...]) -> Sample:
        clip = self.clips[index]
        # A text seed is hashed with SHA-512, the same in every process; draws: frames, transforms, caption.
        rng = random.Random(f"{self.seed}:{epoch}:{index}")
        video = self._video(clip, rng)
        caption = self._caption(clip, rng)
        return Sample(
            video=video,
            text=self._tokenizer([caption]),
            pooled_text=self._tokenizer_2([caption]) if self._tokenizer_2 else None,
            caption=caption,
            path=clip.row.path,
            key=clip.key,
            address=address,
            substitutions=missed,
        )

    def _video(self, clip: Clip, rng: random.Random) -> Tensor:
        """[3,T,H,W] float32 of the size and length that the filter promised."""
        pixels = self._read(clip, rng)
        if clip.row.crop is not None:
            x0, x1, y0, y1 = clip.row.crop
            pixels = pixels[:, y0:y1, x0:x1]
        if 0 in pixels.shape:
            raise DataError(f"{clip.row.path}: crop {list(clip.row.crop)} (x0, x1, y0, y1) leaves no pixels")
        video = self._pipelines[clip.row.kind](torch.from_numpy(pixels).permute(0, 3, 1, 2), rng).transpose(0, 1)
        if video.shape[1:] != (clip.frames, clip.height, clip.width):
            raise DataError(
                f"{clip.row.path}: {'x'.join(map(str, pixels.shape[:3]))} after decoding and crop became "
                f"{'x'.join(map(str, video.shape[1:]))}, but its row ({clip.row.height}x{clip.row.width}) promised {clip.key}"
            )
        return video

    def _read(self, clip: Clip, rng: random.Random) -> np.ndarray:
        """Frames uint8 [T,H,W,3] of one access."""
        if clip.row.kind == "image":
            return read_image(clip.row.path)
        config = self.config.preprocess_parameters
        try:
            indices = frames.select(clip.row.start, clip.row.num_frames, clip.fps, config, rng)
        except DataError as error:
            raise DataError(f"{clip.row.path}: {error}") from None
        return read_clip(self._reader, clip.row.path, indices.tolist())

    def _caption(self, clip: Clip, rng: random.Random) -> str:
        config = self.config.preprocess_parameters
        caption = captions.choose_caption(clip.row.captions, rng)
        if config.use_aesthetic:
            caption = captions.add_aesthetic(caption, clip.row.aesthetic, clip.row.kind, rng)
        if not self.config.enable_text_preprocessing:
            return caption
        return captions.drop_caption(captions.preprocess(caption, self.config.use_clean_caption), config.cfg, rng)


def build_dataset(config: DatasetConfig, *, global_batch_size: int | None, seed: int) -> ClipDataset:
    """Read and filter the list, load the tokenizers; the log says which rows are dropped and why.

    global_batch_size: for the rule rare_shape (see `filter_rows`). seed: the run's. Raises DataError or ConfigError
    for anything that no sample could be made with.
    """
    source = config.basic_parameters.data_path
    result = filter_rows(read_list(source), config.preprocess_parameters, global_batch_size, source)
    for line in result.lines():
        log.info(line)
    key = "dataset_param.tokenizer_config"
    tokenizer = load_tokenizer(config.tokenizer_config, key, config.model_max_length)
    second = config.tokenizer_config_2
    tokenizer_2 = load_tokenizer(second, f"{key}_2") if second else None
    return ClipDataset(result.clips, config, tokenizer, tokenizer_2, seed=seed)


def _check_pipelines(clips: tuple[Clip, ...], pipelines: dict[str, Pipeline]) -> None:
    """Transforms must make float frames of the promised size: found out here for all clips, not one by one later."""
    sizes = {(clip.row.kind, clip.row.height, clip.row.width): clip for clip in clips}
    for kind in {kind for kind, _, _ in sizes}:
        if not any(isinstance(step, (ToTensorVideo, ToTensorAfterResize)) for step in pipelines[kind].steps):
            raise ConfigError(f"train_pipeline.{kind}: holds no ToTensorVideo, so that frames would stay whole numbers")
    for (kind, height, width), clip in sizes.items():
        made = pipelines[kind].output_size(height, width)
        if made != (clip.height, clip.width):
            raise ConfigError(
                f"train_pipeline.{kind}: makes {made[0]}x{made[1]} of {height}x{width} ({clip.row.path}), but "
                f"preprocess_parameters ask for {clip.height}x{clip.width}; give the transforms the same size, "
                "max_hxw, hw_stride and force_5_ratio"
            )
