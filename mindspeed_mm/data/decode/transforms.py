"""The transforms of `train_pipeline`: turn decoded frames into a clip for the autoencoder.

A pipeline first plans a clip: random decisions and sizes are fixed for all its frames. The plan then takes one frame
at a time, so that a 1080p clip is never held whole (121 frames of it are 0.75 GB as bytes and 3 GB as floats).

A plan is geometry (crops, flips, resizes) on decoded values, then arithmetic on each pixel. The two commute, so frames
stay 8-bit until they are small.
"""

import dataclasses
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mindspeed_mm.config import transforms as configs
from mindspeed_mm.data.decode.resize import BandCache, Resizer
from mindspeed_mm.data.decode.resolution import center_crop_box, fit_inside, fit_pixels, stride_crop
from mindspeed_mm.errors import ConfigError

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True, slots=True)
class Crop:
    top: int
    left: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True, slots=True)
class Flip:
    """Mirrors left and right."""


@dataclasses.dataclass(frozen=True, slots=True)
class Resize:
    height: int
    width: int
    mode: str


@dataclasses.dataclass(frozen=True, slots=True)
class Arithmetic:
    """(x - minus) / divide * times + plus in fp32, per channel where a tuple is given; `of_bytes` takes bytes only."""

    minus: tuple[float, ...] = (0.0,)
    divide: tuple[float, ...] = (1.0,)
    times: float = 1.0
    plus: float = 0.0
    of_bytes: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """[C,H,W]."""
        minus, divide = (torch.tensor(values).view(-1, 1, 1) for values in (self.minus, self.divide))
        x = x.to(torch.float32)
        x = x if self.minus == (0.0,) else x - minus
        x = x if self.divide == (1.0,) else x / divide
        return x if (self.times, self.plus) == (1.0, 0.0) else x * self.times + self.plus


class Pipeline:
    """Transforms in order; see `build_pipeline`."""

    def __init__(self, steps: tuple):
        self.steps = steps
        self._bands = BandCache()

    def plan(self, size: Size, rng: random.Random) -> "ClipPlan":
        """Plan for all frames of a clip of this size. Draws from `rng` in the order of the steps."""
        primitives = []
        before = size
        for config in self.steps:
            more, size = PLANNERS[type(config)](config, size, rng)
            primitives += more
        return ClipPlan(before, primitives, size, self._bands)

    def output_size(self, height: int, width: int) -> Size:
        """(height, width) of the results for frames of height x width."""
        return self.plan((height, width), random.Random(0)).size

    def __call__(self, video: Tensor, rng: random.Random) -> Tensor:
        """Transforms [T,C,H,W] to fp32 [T,C,h,w]; the memory is laid out as [C,T,h,w]."""
        if not len(video):
            raise ValueError("a video of no frames cannot be transformed")
        plan = self.plan(_size(video), rng)
        out = torch.empty(video.shape[1], len(video), *plan.size)
        for number, frame in enumerate(video):
            plan(frame.unbind(0), out[:, number])
        return out.transpose(0, 1)


def with_cover(steps: Sequence, size: Size) -> tuple:
    """The steps with a first resize of their own, which covers `size` and cuts off the rest from the middle.

    It interpolates like the first resize among the steps.
    """
    floats = (configs.ToTensorVideo, configs.ToTensorAfterResize)
    place = next((number + 1 for number, step in enumerate(steps) if isinstance(step, floats)), 0)
    mode = next((step.interpolation_mode for step in steps if hasattr(step, "interpolation_mode")), "bicubic")
    cover = configs.CenterCropResizeVideo(size=size, interpolation_mode=mode)
    return (*steps[:place], cover, *steps[place:])


class ClipPlan:
    """Operations on each frame of one clip; `size` is the (height, width) of the result."""

    def __init__(self, before: Size, primitives: list, size: Size, cache: BandCache):
        self.size = size
        self._cache = cache
        self._arithmetic = [item for item in primitives if isinstance(item, Arithmetic)]
        if any(item.of_bytes for item in self._arithmetic[1:]):
            raise _not_bytes(torch.float32)
        first = primitives.index(self._arithmetic[0]) if self._arithmetic else 0
        self._on_bytes = primitives[:first]  # geometry before ToTensorAfterResize: its results are whole numbers
        self._geometry = [item for item in primitives[first:] if not isinstance(item, Arithmetic)]
        self._resizers: dict[int, Resizer] = {}  # by place in the geometry
        self._plain = None if self._needs_channels() else self._as_line()

    def __call__(self, planes: Sequence[Tensor], out: Tensor) -> None:
        """planes: channels of a frame, each [H,W], bytes or floats, of any strides. out: [C,h,w] fp32, filled."""
        if planes[0].dtype != torch.uint8 and any(item.of_bytes for item in self._arithmetic):
            raise _not_bytes(planes[0].dtype)
        for item in self._on_bytes:
            planes = _on_bytes(item, planes)
        done = False  # whether a resize's weights include the arithmetic
        for place, item in enumerate(self._geometry):
            size = _size(planes[0])
            if isinstance(item, Crop):
                planes = _crop(item, planes)
            elif isinstance(item, Flip):
                planes = [plane.flip(1) for plane in planes]
            elif size != (item.height, item.width):
                resizer = self._resizer(place, item, size)
                if self._plain is not None and place == len(self._geometry) - 1:  # as in the published pipeline
                    resizer.into(out, planes)
                    return
                planes, done = resizer(planes), self._is_last_resize(place) and self._plain is not None
        if done:
            torch.stack(list(planes), out=out)
            return
        frame = torch.stack(list(planes))
        for item in self._arithmetic:
            frame = item(frame)
        out.copy_(frame)

    def _resizer(self, place: int, item: Resize, size: Size) -> Resizer:
        if place not in self._resizers:
            line = self._plain if self._plain is not None and self._is_last_resize(place) else (1.0, 0.0)
            self._resizers[place] = Resizer(size, (item.height, item.width), item.mode, self._cache, *line)
        return self._resizers[place]

    def _is_last_resize(self, place: int) -> bool:
        return not any(isinstance(later, Resize) for later in self._geometry[place + 1 :])

    def _needs_channels(self) -> bool:
        return any(len(set(values)) > 1 for item in self._arithmetic for values in (item.minus, item.divide))

    def _as_line(self) -> tuple[float, float]:
        """All arithmetic as x * factor + offset."""
        factor, offset = 1.0, 0.0
        for item in self._arithmetic:
            scale = item.times / item.divide[0]
            factor, offset = factor * scale, (offset - item.minus[0]) * scale + item.plus
        return factor, offset


def build_pipeline(steps: tuple) -> Pipeline:
    """Builds, from the transform configs of data.json, a callable (video [T,C,H,W], rng) -> video that also plans
    clips.
    """
    return Pipeline(tuple(steps))


def covering(frames: Tensor, size: Size) -> Tensor:
    """uint8 [n,3,H,W] -> fp32 [n,3,h,w] in [-1,1], as training resizes clips (bicubic): cropped at the centre to the
    aspect ratio of `size`.
    """
    box = Crop(*center_crop_box(*_size(frames), *size))
    steps = [
        Arithmetic(divide=(255.0,), of_bytes=True),
        box,
        Resize(*size, "bicubic"),
        Arithmetic(times=2.0, plus=-1.0),
    ]
    plan = ClipPlan(_size(frames), steps, size, BandCache())
    out = torch.empty(len(frames), 3, *size)
    for frame, place in zip(frames, out, strict=True):
        plan(frame.unbind(0), place)
    return out.clamp(-1, 1)


def resize(video: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Resizes [T,C,H,W], mode 'bilinear' or 'bicubic'. Bicubic may overshoot the range of its input.

    The plain twin of `Resizer`. align_corners together with antialias is unusual (scale (n-1)/(m-1) with half-pixel
    centres, so the picture shifts slightly), but the published weights were trained with it.
    """
    if video.shape[-2:] == (height, width):
        return video
    return F.interpolate(video, (height, width), mode=mode, align_corners=True, antialias=True)


def _size(picture: Tensor) -> Size:
    return picture.shape[-2], picture.shape[-1]


def _not_bytes(found: torch.dtype) -> ConfigError:
    return ConfigError(f"train_pipeline: ToTensorVideo takes uint8 frames, found {found}; put it first")


def _crop(item: Crop, planes: Sequence[Tensor]) -> list[Tensor]:
    return [plane[item.top : item.top + item.height, item.left : item.left + item.width] for plane in planes]


def _on_bytes(item, planes: Sequence[Tensor]) -> Sequence[Tensor]:
    """A step of geometry whose result keeps the type of the planes."""
    if isinstance(item, Crop):
        return _crop(item, planes)
    if isinstance(item, Flip):
        return [plane.flip(1) for plane in planes]
    return resize(torch.stack(list(planes))[None], item.height, item.width, item.mode)[0].unbind(0)


# ------------------------------------------------------------ planners: (config, size, rng) -> (primitives, size after)


def _to_float(config, size: Size, rng) -> tuple[list, Size]:
    return [Arithmetic(divide=(255.0,), of_bytes=True)], size


def _to_float_any(config, size: Size, rng) -> tuple[list, Size]:
    return [Arithmetic(divide=(255.0,))], size


def _autoencoder_norm(config, size: Size, rng) -> tuple[list, Size]:
    return [Arithmetic(times=2.0, plus=-1.0)], size


def _normalize(config: configs.Normalize, size: Size, rng) -> tuple[list, Size]:
    return [Arithmetic(minus=config.mean, divide=config.std)], size


def _flip(config: configs.RandomHorizontalFlipVideo, size: Size, rng: random.Random) -> tuple[list, Size]:
    return [Flip()] if rng.random() < config.p else [], size


def _center_crop_resize(config: configs.CenterCropResizeVideo, size: Size, rng) -> tuple[list, Size]:
    box = center_crop_box(*size, *config.size, config.top_crop)
    return [Crop(*box), Resize(*config.size, config.interpolation_mode)], config.size


def _long_side_resize(config: configs.LongSideResizeVideo, size: Size, rng) -> tuple[list, Size]:
    small = size[0] <= config.size[0] and size[1] <= config.size[1]
    if not (config.skip_low_resolution and small):
        size = fit_inside(*size, *config.size)
    return [Resize(*size, config.interpolation_mode)], size


def _max_hxw_stride_resize(config: configs.MaxHWStrideResizeVideo, size: Size, rng) -> tuple[list, Size]:
    size = fit_pixels(*size, config.max_hxw, config.force_5_ratio, config.hw_stride)
    return [Resize(*size, config.interpolation_mode)], size


def _max_hxw_resize(config: configs.MaxHWResizeVideo, size: Size, rng) -> tuple[list, Size]:
    size = fit_pixels(*size, config.max_hxw, five_ratios=True, stride=16)
    return [Resize(*size, config.interpolation_mode)], size


def _stride_crop(config: configs.SpatialStrideCropVideo, size: Size, rng) -> tuple[list, Size]:
    box = stride_crop(*size, config.stride, config.force_5_ratio)
    return [Crop(*box)], box[2:]


PLANNERS = {
    configs.ToTensorVideo: _to_float,
    configs.ToTensorAfterResize: _to_float_any,
    configs.AutoencoderNorm: _autoencoder_norm,
    configs.Normalize: _normalize,
    configs.RandomHorizontalFlipVideo: _flip,
    configs.CenterCropResizeVideo: _center_crop_resize,
    configs.LongSideResizeVideo: _long_side_resize,
    configs.MaxHWStrideResizeVideo: _max_hxw_stride_resize,
    configs.MaxHWResizeVideo: _max_hxw_resize,
    configs.SpatialStrideCropVideo: _stride_crop,
}
