"""The transforms of `train_pipeline`, on frames [T,C,H,W].

A pipeline first plans: random decisions and sizes are fixed for the whole clip. Then it runs frame by frame, so that a
1080p clip is never held in float32 (121 frames of it would be 3 GB), and what a frame needs stays in the cache
(resizing 1080p to 576p: 39 ms a frame, 69 ms when eight are taken at a time).
"""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mindspeed_mm.config import transforms as configs
from mindspeed_mm.data.resolution import center_crop_box, fit_inside, fit_pixels, stride_crop
from mindspeed_mm.errors import ConfigError

Size = tuple[int, int]  # height, width
Step = Callable[[Tensor], Tensor]


class Pipeline:
    """Transforms in order; see `build_pipeline`."""

    def __init__(self, steps: tuple):
        self.steps = steps

    def __call__(self, video: Tensor, rng: random.Random) -> Tensor:
        """[T,C,H,W] -> [T,C,h,w]; the memory behind it is laid out as [C,T,h,w]. Draws from `rng` in order of steps."""
        steps, (height, width) = self.plan(tuple(video.shape[-2:]), rng)
        out = None
        for number in range(len(video)):
            frame = video[number : number + 1].contiguous()
            for step in steps:
                frame = step(frame)
            if out is None:
                out = frame.new_empty((frame.shape[1], len(video), height, width))
            out[:, number] = frame[0]
        if out is None:
            raise ValueError("a video of no frames cannot be transformed")
        return out.transpose(0, 1)

    def plan(self, size: Size, rng: random.Random) -> tuple[list[Step], Size]:
        """The functions to run on frames of this size, and the size that comes out."""
        steps = []
        for config in self.steps:
            step, size = _PLANNERS[type(config)](config, size, rng)
            steps.append(step)
        return steps, size

    def output_size(self, height: int, width: int) -> Size:
        """(height, width) that frames of height x width come out with."""
        return self.plan((height, width), random.Random(0))[1]


def build_pipeline(steps: tuple) -> Pipeline:
    """A callable (video [T,C,H,W], rng) -> video from the transform configs of data.json."""
    for config in steps:
        if isinstance(config, configs.Normalize) and 0 in config.std:
            raise ConfigError(f"train_pipeline: norm_fun divides by std {list(config.std)}")
    return Pipeline(tuple(steps))


def resize(video: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Resize [T,C,H,W], mode 'bilinear' or 'bicubic'. Bicubic may overshoot the range of its input.

    align_corners together with antialias is unusual (scale (n-1)/(m-1) with half-pixel centres, so the picture shifts
    slightly), but it is what the published weights were trained with.
    """
    if video.shape[-2:] == (height, width):
        return video
    return F.interpolate(video, (height, width), mode=mode, align_corners=True, antialias=True)


# ------------------------------------------------------------- planners: (config, size, rng) -> (function, size after)


def _to_float(config, size: Size, rng) -> tuple[Step, Size]:
    def step(video: Tensor) -> Tensor:
        if video.dtype != torch.uint8:
            raise ConfigError(f"train_pipeline: ToTensorVideo takes uint8 frames, found {video.dtype}; put it first")
        return video.to(torch.float32).div_(255)

    return step, size


def _to_float_any(config, size: Size, rng) -> tuple[Step, Size]:
    return lambda video: video.to(torch.float32) / 255, size


def _autoencoder_norm(config, size: Size, rng) -> tuple[Step, Size]:
    return lambda video: 2.0 * video - 1.0, size


def _normalize(config: configs.Normalize, size: Size, rng) -> tuple[Step, Size]:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.mean, config.std))
    return lambda video: (video - mean) / std, size


def _flip(config: configs.RandomHorizontalFlipVideo, size: Size, rng: random.Random) -> tuple[Step, Size]:
    mirrored = rng.random() < config.p
    return lambda video: video.flip(-1) if mirrored else video, size


def _center_crop_resize(config: configs.CenterCropResizeVideo, size: Size, rng) -> tuple[Step, Size]:
    top, left, height, width = center_crop_box(*size, *config.size, config.top_crop)

    def step(video: Tensor) -> Tensor:
        cropped = video[..., top : top + height, left : left + width]
        return resize(cropped, *config.size, config.interpolation_mode)

    return step, config.size


def _long_side_resize(config: configs.LongSideResizeVideo, size: Size, rng) -> tuple[Step, Size]:
    small = size[0] <= config.size[0] and size[1] <= config.size[1]
    if not (config.skip_low_resolution and small):
        size = fit_inside(*size, *config.size)
    return _resize_to(size, config.interpolation_mode)


def _max_hxw_stride_resize(config: configs.MaxHWStrideResizeVideo, size: Size, rng) -> tuple[Step, Size]:
    size = fit_pixels(*size, config.max_hxw, config.force_5_ratio, config.hw_stride)
    return _resize_to(size, config.interpolation_mode)


def _max_hxw_resize(config: configs.MaxHWResizeVideo, size: Size, rng) -> tuple[Step, Size]:
    return _resize_to(fit_pixels(*size, config.max_hxw, five_ratios=True, stride=16), config.interpolation_mode)


def _resize_to(size: Size, mode: str) -> tuple[Step, Size]:
    return lambda video: resize(video, *size, mode), size


def _stride_crop(config: configs.SpatialStrideCropVideo, size: Size, rng) -> tuple[Step, Size]:
    top, left, height, width = stride_crop(*size, config.stride, config.force_5_ratio)
    return lambda video: video[..., top : top + height, left : left + width], (height, width)


_PLANNERS = {
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
