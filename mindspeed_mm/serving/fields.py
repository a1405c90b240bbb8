"""Fields of a request for a video: as JSON, or as the texts of a form, which OpenAI's client sends."""

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any

from mindspeed_mm.config.sample import PromptConfig, SampleModelConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import did_you_mean
from mindspeed_mm.serving import limits
from mindspeed_mm.serving.faults import Refusal

IMAGES = {"input_reference": "image", "last_image": "last_image"}  # field -> key of a prompt
_URLS = {f"{name}[image_url]": name for name in IMAGES}  # as OpenAI's client writes an object into a form
_SECONDS = limits.Range("seconds", 0, 3600, whole=False)
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for. line: without its images. images: bytes of their files, by field.

    follows_image: height and width are not asked for, so that they follow the images.
    """

    line: PromptConfig
    seconds: str | None
    images: dict[str, bytes]
    follows_image: bool
    digest: str  # of all of it


def asked_of(values: dict[str, Any], files: dict[str, bytes], model: SampleModelConfig, name: str) -> Asked:
    """Reads the fields of a request. files: those of a form, by field. name: of the served model.

    Raises Refusal: 400 for unknown fields, 404 for another model, 422 for a value that cannot be.
    """
    values = {key: value for key, value in values.items() if value is not None}
    known = (*_READERS, "model", "seconds", "size", "frames", *IMAGES, *_URLS)
    unknown = [key for key in values if key not in known]
    if unknown:
        named = ", ".join(f"{key[:60]!r}{did_you_mean(key, known)}" for key in unknown[:10])
        raise Refusal(400, f"unknown fields: {named}", code="unknown_parameter", param=unknown[0][:60])
    if values.get("model", name) != name:
        raise Refusal(404, f"this server has the model {name!r} alone", code="model_not_found", param="model")
    if "prompt" not in values:
        raise Refusal(422, "prompt is missing", code="missing_required_parameter", param="prompt")
    read = {key: _checked(key, reader, values[key]) for key, reader in _READERS.items() if key in values}
    linked = {field: _checked(field, _image(field), _url(values, field)) for field in IMAGES}
    images = {field: image for field, image in linked.items() if image is not None} | files
    area = _checked("size", lambda value: _area(value, model), values.get("size"))
    line = PromptConfig(
        prompt=read["prompt"],
        negative_prompt=read.get("negative_prompt"),
        seed=read.get("seed"),
        guidance_scale=read.get("guidance_scale"),
        num_inference_steps=read.get("num_inference_steps"),
        input_size=(_length(values, model), *area),
    )
    seconds = str(values["seconds"]) if "seconds" in values else None
    pixels = {field: hashlib.sha256(image).hexdigest() for field, image in images.items()}
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(line), seconds, pixels]).encode()).hexdigest()
    return Asked(line, seconds, images, bool(images) and "size" not in values, digest)


def _checked(name: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except ConfigError as error:
        raise Refusal(422, str(error), code="invalid_value", param=name) from None


def _number(range: limits.Range) -> Callable[[Any], Any]:
    """Reads a number, which a form gives as a text."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            with contextlib.suppress(ValueError):  # else the range refuses the text, and says what it needs
                value = int(value) if re.fullmatch(r"[+-]?\d{1,20}", value, re.ASCII) else float(value)
        return range.check(value)

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "prompt": lambda value: limits.text("prompt", value),
    "negative_prompt": lambda value: limits.text("negative_prompt", value),
    "seed": _number(limits.SEED),
    "guidance_scale": _number(limits.GUIDANCE),
    "num_inference_steps": _number(limits.STEPS),
}


def _area(value: Any, model: SampleModelConfig) -> tuple[int, int]:
    """(height, width) from `size`, WIDTHxHEIGHT; the model's if it is missing."""
    _, height, width = model.pipeline_config.input_size
    if value is None:
        return height, width
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value, re.ASCII) if isinstance(value, str) else None
    if found is None:
        raise ConfigError(f"size {str(value)[:40]!r}: give WIDTHxHEIGHT, such as {width}x{height}")
    return limits.HEIGHT.check(int(found[2])), limits.WIDTH.check(int(found[1]))


def _length(values: dict[str, Any], model: SampleModelConfig) -> int:
    """Number of frames from `frames` or `seconds`; the model's if both are missing."""
    if "seconds" in values and "frames" in values:
        reason = "frames and seconds: both give the length; leave one out"
        raise Refusal(422, reason, code="invalid_value", param="frames")
    if "frames" in values:
        return _checked("frames", _number(limits.FRAMES), values["frames"])
    if "seconds" in values:
        return _checked("seconds", lambda value: _frames(_number(_SECONDS)(value), model), values["seconds"])
    return model.pipeline_config.input_size[0]


def _frames(seconds: float, model: SampleModelConfig) -> int:
    """The number of frames nearest to a length that the autoencoder can encode, 1 + n strides."""
    stride = model.ae.strides[0]
    frames = 1 + stride * max(0, math.floor((seconds * model.rate - 1) / stride + 0.5))
    return limits.FRAMES.check(frames)


def _url(values: dict[str, Any], field: str) -> Any:
    """The data URL of an image, or None."""
    given = values.get(field)
    if isinstance(given, dict):
        return given.get("image_url", given)
    return values.get(f"{field}[image_url]", given)


def _image(field: str) -> Callable[[Any], bytes | None]:
    """Reads a data URL. The server fetches nothing: an address may lead into the network that it stands in."""

    def read(value: Any) -> bytes | None:
        if value is None:
            return None
        found = _DATA_URL.match(value) if isinstance(value, str) else None
        if found is None:
            raise ConfigError(f"{field}: send the image as a file, or as a data URL (data:image/png;base64,...)")
        try:
            return base64.b64decode(value[found.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError(f"{field}: its data URL holds no base64") from None

    return read
