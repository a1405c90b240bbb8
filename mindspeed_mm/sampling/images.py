"""Images and clips that a sample starts from: their sizes, and their pixels at the places of the sample's frames."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mindspeed_mm import families
from mindspeed_mm.config.geometry import size_like
from mindspeed_mm.config.image_inputs import FrameInput, ImageInputs
from mindspeed_mm.config.sample import PromptConfig, SampleModelConfig
from mindspeed_mm.data.decode.facts import Facts, facts_of
from mindspeed_mm.data.decode.images import read_image
from mindspeed_mm.data.decode.readers import build_reader, read_clip
from mindspeed_mm.data.decode.resolution import center_crop_box
from mindspeed_mm.data.decode.transforms import covering
from mindspeed_mm.errors import ConfigError, DataError, SamplingError


class Picture:
    """An array uint8 [H,W,3] in place of a file's name."""

    def __init__(self, pixels: np.ndarray):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ConfigError(f"an image: {pixels.dtype} {list(pixels.shape)}; need uint8 [H,W,3]")
        self.pixels = pixels


def inputs_of(image: "str | Path | np.ndarray | ImageInputs | None") -> dict[str, Any]:
    """Keys of a prompt for what a notebook gives: the first frame, or `ImageInputs`, which may hold arrays."""
    if image is None:
        return {}
    if not isinstance(image, ImageInputs):
        return {"image": _source(image)}
    found = {field.name: _source(getattr(image, field.name)) for field in dataclasses.fields(image)}
    return {**found, "frames": tuple(FrameInput(at=item.at, image=_source(item.image)) for item in image.frames)}


def _source(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return Picture(value)
    return str(value) if isinstance(value, Path) else value


def settings_of(model: SampleModelConfig, line: PromptConfig) -> SampleModelConfig:
    """The settings of a prompt, at a size that follows its images unless it gives one; its images are checked.

    Raises ConfigError or DataError.
    """
    settings = model.for_prompt(line)
    if not settings.images.files:
        return settings
    if not families.takes_images(settings.predictor):
        raise ConfigError(
            f"{next(iter(settings.images.files))}: the predictor takes no images (image_mask_channels 0); sample with a "
            "model that was trained with image_conditions"
        )
    if line.input_size is None:
        settings = fitted(settings)
    check_images(settings)
    return settings


def fitted(model: SampleModelConfig) -> SampleModelConfig:
    """The settings with a height and width of the aspect ratio of their images, and about as many pixels as before."""
    shown = _shown_size(model.images)
    if shown is None:
        return model
    frames, height, width = model.pipeline_config.input_size
    units = [stride * model.predictor.patch_size for stride in model.ae.strides[1:]]
    size = (frames, *size_like(shown, height * width, (units[0], units[1])))
    return dataclasses.replace(model, pipeline_config=dataclasses.replace(model.pipeline_config, input_size=size))


def check_images(model: SampleModelConfig) -> None:
    """Raises ConfigError or DataError if the images of a sample cannot be used at its length."""
    images, frames = model.images, model.pipeline_config.input_size[0]
    last = max((item.at for item in images.frames), default=0)
    if last >= frames:
        raise ConfigError(f"frames: there is no frame {last} in a sample of {frames}; the last is {frames - 1}")
    if images.extend_frames is not None and images.extend_frames >= frames:
        raise ConfigError(
            f"extend_frames {images.extend_frames}: a sample of {frames} frames extends nothing; give fewer"
        )
    for name, source in images.files.items():
        _facts(source, name)
    if images.inpaint is not None:
        _clip_places(images.inpaint, "inpaint", range(frames), model.rate, 0)


def load(model: SampleModelConfig) -> tuple[Tensor, Tensor]:
    """Known pixels of a sample: video [1,3,T,H,W] in [-1,1], and 1 where it is known [1,T,H,W].

    Images are resized to cover the sample and cropped at the centre. Raises SamplingError for a file that is damaged.
    """
    size = model.pipeline_config.input_size
    video, known = torch.zeros(1, 3, *size), torch.zeros(1, *size)
    try:
        for place, frames in _frames(model):
            stop = place + len(frames)
            pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
            video[0, :, place:stop] = covering(pictures, size[1:]).transpose(0, 1)
            known[0, place:stop] = 1.0
        if model.images.mask is not None:
            known *= _mask(model.images.mask, size[1:])
    except DataError as error:
        raise SamplingError(str(error)) from None
    return video, known


def _frames(model: SampleModelConfig):
    """(number of the first frame, frames uint8 [n,H,W,3]) of each input."""
    images, frames = model.images, model.pipeline_config.input_size[0]
    if images.image is not None:
        yield 0, _picture(images.image)
    if images.last_image is not None:
        yield frames - 1, _picture(images.last_image)
    for item in images.frames:
        yield item.at, _picture(item.image)
    if images.extend is not None:
        count = _extended(images, frames, model)
        yield 0, _read(images.extend, _clip_places(images.extend, "extend", range(count), model.rate, count))
    if images.inpaint is not None:
        yield 0, _read(images.inpaint, _clip_places(images.inpaint, "inpaint", range(frames), model.rate, 0))


def _extended(images: ImageInputs, frames: int, model: SampleModelConfig) -> int:
    """Number of frames that are taken from the clip: whole latents, about half of the sample unless it is given."""
    if images.extend_frames is not None:
        return images.extend_frames
    assert images.extend is not None
    stride = model.ae.strides[0]
    latents = (frames - 1) // stride
    facts = _facts(images.extend, "extend")
    there = int(((facts.num_frames or 1) - 1) * model.rate / (facts.fps or model.rate)) + 1
    wanted = min(max(1, latents // 2), latents - 1, (there - 1) // stride)
    return 1 + stride * max(0, wanted)


def _clip_places(path: str, name: str, numbers: range, rate: float, from_end: int) -> list[int]:
    """Frames of a clip that are shown as the given numbers of a sample at `rate` frames per second.

    from_end: the sample's frame that lies just behind the end of the clip; 0: the clip begins with the sample.
    """
    facts = _facts(path, name)
    count, step = facts.num_frames or 1, (facts.fps or rate) / rate
    if from_end:
        places = [round(count - 1 - (from_end - 1 - number) * step) for number in numbers]
    else:
        places = [round(number * step) for number in numbers]
    if places[0] < 0 or places[-1] >= count:
        raise DataError(
            f"{name} {path}: has {count} frames at {facts.fps or rate:g} a second, too few for {len(numbers)} frames at "
            f"{rate:g}; use a longer clip or fewer frames"
        )
    return places


def _shown_size(images: ImageInputs) -> tuple[int, int] | None:
    """(height, width) that a sample follows: of its earliest input."""
    for name in ("image", "extend", "inpaint", "last_image"):
        if (source := getattr(images, name)) is not None:
            return _size(_facts(source, name))
    if images.frames:
        return _size(_facts(min(images.frames, key=lambda item: item.at).image, "frames"))
    return None


def _size(facts: Facts) -> tuple[int, int]:
    assert facts.height and facts.width, "a file that can be read has a size"
    return facts.height, facts.width


def _facts(source: str | Picture, name: str) -> Facts:
    """Facts of an input. Raises DataError if it cannot be read."""
    if isinstance(source, Picture):
        return Facts(source.pixels.shape[0], source.pixels.shape[1])
    return facts_of(source, "video" if name in ("extend", "inpaint") else "image")


def _picture(source: "str | Picture") -> np.ndarray:
    """uint8 [1,H,W,3] of a file, or of a notebook's array."""
    return source.pixels[None] if isinstance(source, Picture) else read_image(source)


def _read(path: str, places: list[int]) -> np.ndarray:
    return read_clip(build_reader("decoder"), path, places)


def _mask(source: str | Picture, size: tuple[int, int]) -> Tensor:
    """[h,w]: 0 where the image is white, 1 where it is black, cropped and resized as the clip."""
    pixels = torch.from_numpy(_picture(source)[0]).float().mean(-1)
    top, left, height, width = center_crop_box(pixels.shape[0], pixels.shape[1], *size)
    white = F.interpolate(pixels[None, None, top : top + height, left : left + width], size, mode="area")[0, 0]
    return (white < 127.5).float()
