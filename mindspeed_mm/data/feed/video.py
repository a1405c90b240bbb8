"""Turns clips into tensors: decodes, crops, resizes and normalizes the frames of one access one at a time."""

import random
from collections.abc import Iterable

import torch
from torch import Tensor

from mindspeed_mm.config.data import PreprocessConfig
from mindspeed_mm.config.transforms import ToTensorAfterResize, ToTensorVideo
from mindspeed_mm.data.decode import frames
from mindspeed_mm.data.decode.images import read_image
from mindspeed_mm.data.decode.readers import build_reader
from mindspeed_mm.data.decode.rgb import split
from mindspeed_mm.data.decode.shown import OTHER_SIZE, Tell, ignore
from mindspeed_mm.data.decode.transforms import ClipPlan, Pipeline, build_pipeline, with_cover
from mindspeed_mm.data.lists.filters import Clip
from mindspeed_mm.data.workers.buffers import Allocate
from mindspeed_mm.errors import ConfigError, DataError

CHANNELS = 3


class VideoSource:
    """Reads clips of a list. Holds a reader and the resize weights; can be pickled for worker processes."""

    def __init__(self, config: PreprocessConfig):
        """Raises DataError if the reader's package is missing."""
        self.config = config
        self._reader = build_reader(config.video_reader_type, config.frame_index_folder)
        pipelines = config.train_pipeline
        self._pipelines = {"video": build_pipeline(pipelines.video), "image": build_pipeline(pipelines.image)}
        self._of_buckets: dict[tuple[str, tuple[int, int]], Pipeline] = {}

    def load(
        self,
        clip: Clip,
        rng: random.Random,
        crop: int = 0,
        allocate: Allocate = torch.empty,
        tell: Tell = ignore,
    ) -> Tensor:
        """[3,T,H,W] fp32 in the size and length that the filter promised. Draws from `rng`: frames, then transforms.

        crop: number of the draws of `rng`, the key of stored features. allocate: makes the fp32 tensor of a given
        shape that is filled and returned. tell: called with the clip's special traits. Raises DataError for any fault
        of the file or of its row.
        """
        path = clip.row.path
        indices = self._indices(clip, rng)
        begun: tuple[ClipPlan, tuple[int, int], Tensor] | None = None
        for places, planes in self._frames(clip, indices, tell):
            planes = [_cropped(torch.from_numpy(plane), clip) for plane in planes]
            shape = planes[0].shape[0], planes[0].shape[1]
            if begun is None:
                if shape != (clip.row.height, clip.row.width):
                    tell(OTHER_SIZE)
                plan = self._pipeline(clip).plan(shape, rng)
                _check_promise(clip, (len(indices), *shape), (len(indices), *plan.size))
                begun = plan, shape, allocate((CHANNELS, clip.frames, clip.height, clip.width))
            plan, size, out = begun
            if shape != size:
                raise DataError(f"{path}: frame {indices[places[0]]} is {shape}, earlier ones {size}")
            plan(planes, out[:, places[0]])
            for place in places[1:]:
                out[:, place] = out[:, places[0]]
        if begun is None:
            raise DataError(f"{path}: gave no frames")
        return begun[2]

    def check(self, clips: Iterable[Clip]) -> None:
        """Checks for all clips that the transforms make floats of the promised size."""
        sizes = {(clip.row.kind, clip.source_size, clip.row.bucket): clip for clip in clips}
        for kind in {kind for kind, *_ in sizes}:
            steps = self._pipelines[kind].steps
            if not any(isinstance(step, (ToTensorVideo, ToTensorAfterResize)) for step in steps):
                raise ConfigError(
                    f"train_pipeline.{kind}: holds no ToTensorVideo, so that frames would stay whole numbers"
                )
        for (kind, size, _), clip in sizes.items():
            _check_size(kind, size, clip, self._pipeline(clip))

    def _pipeline(self, clip: Clip) -> Pipeline:
        """The transforms of a clip; with auto_buckets they begin with a resize to its bucket."""
        kind, bucket = clip.row.kind, clip.row.bucket
        if bucket is None:
            return self._pipelines[kind]
        if (kind, bucket) not in self._of_buckets:
            self._of_buckets[kind, bucket] = build_pipeline(with_cover(self._pipelines[kind].steps, bucket))
        return self._of_buckets[kind, bucket]

    def _indices(self, clip: Clip, rng: random.Random) -> list[int]:
        if clip.row.kind == "image":
            return [0]
        try:
            return frames.select(clip.row.start, clip.source_frames, clip.fps, self.config, rng).tolist()
        except DataError as error:
            raise DataError(f"{clip.row.path}: {error}") from None

    def _frames(self, clip: Clip, indices: list[int], tell: Tell):
        if clip.row.kind == "image":
            return [((0,), split(read_image(clip.row.path)[0]))]
        return self._reader.frames(clip.row.path, indices, clip.row.fps, tell)


def _cropped(plane: Tensor, clip: Clip) -> Tensor:
    if clip.row.crop is None:
        return plane
    x0, x1, y0, y1 = clip.row.crop
    plane = plane[y0:y1, x0:x1]
    if 0 in plane.shape:
        raise DataError(f"{clip.row.path}: crop {list(clip.row.crop)} (x0, x1, y0, y1) leaves no pixels")
    return plane


def _check_promise(clip: Clip, read: tuple, made: tuple) -> None:
    if made != (clip.frames, clip.height, clip.width):
        raise DataError(
            f"{clip.row.path}: {'x'.join(map(str, read))} after decoding and crop became {'x'.join(map(str, made))}, "
            f"but its row ({clip.row.height}x{clip.row.width}) promised {clip.key}"
        )


def _check_size(kind: str, size: tuple[int, int], clip: Clip, pipeline: Pipeline) -> None:
    made = pipeline.output_size(*size)
    if made != (clip.height, clip.width):
        raise ConfigError(
            f"train_pipeline.{kind}: makes {made[0]}x{made[1]} of {size[0]}x{size[1]} ({clip.row.path}), but "
            f"preprocess_parameters ask for {clip.height}x{clip.width}; give the transforms the same size, "
            "max_hxw, hw_stride and force_5_ratio"
        )
