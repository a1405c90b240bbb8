"""Makes the samples of jobs: denoises, decodes and writes, and can be stopped before each block of the denoiser.

This file knows no web and no queue.
"""

import contextlib
import dataclasses
import functools
import io
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from mindspeed_mm.config.sample import PromptConfig, SampleConfig
from mindspeed_mm.data.decode.images import read_image
from mindspeed_mm.data.decode.readers import build_reader, read_clip
from mindspeed_mm.errors import SamplingError
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.sampling.archive import Archive
from mindspeed_mm.sampling.denoise import Step
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.requests import Request, requests_of
from mindspeed_mm.schema import build, node_from_python

_LONGEST_SIDE = 640  # pixels of a thumbnail
Preview = Callable[[], bytes | None]  # makes a JPEG of the first frame as it looks now; None if it cannot be decoded
Check = Callable[[], None]  # raises an exception to end the work


def no_preview() -> None:
    """Of a sample that shows nothing before its end."""


class Tell(Protocol):
    """Is told the number of finished steps, and of all; `preview` costs time only if it is called."""

    def __call__(self, number: int, total: int, preview: Preview = no_preview) -> None: ...


class Maker(Protocol):
    """What a worker needs of whoever makes samples. name: of the sample's files, without the suffix."""

    def made(self, name: str, line: dict[str, Any]) -> str | None:
        """Name of the file if this sample is there, complete: the server was killed just before it wrote that down."""

    def make(self, name: str, line: dict[str, Any], tell: Tell, check: Check) -> Callable[[], str]:
        """Makes a sample. Returns what writes its files and gives the name of the video or image; it may be called
        again after an OSError. check is called often.
        """
        ...

    def remove(self, name: str) -> None:
        """Removes the sample's files and its image, those that are there."""


class SampleMaker:
    """Makes samples with a pipeline, and keeps them in `config.model.save_path`."""

    def __init__(
        self, config: SampleConfig, pipeline: T2VPipeline, platform: Platform, weights: dict[str, dict[str, str]]
    ):
        """weights: paths and hashes, as `provenance.weights_of` returns them."""
        self.config = config
        self.pipeline = pipeline
        self.platform = platform
        self.archive = Archive(config, weights, platform)

    def settled(self, line: PromptConfig) -> dict[str, Any]:
        """A request with every value that it left open, such as the seed, for `make`; JSON can hold it.

        So a server that is started again, maybe with other defaults, makes the same sample. Raises ConfigError for a
        request that cannot be sampled.
        """
        if line.seed is None:
            line = dataclasses.replace(line, seed=secrets.randbelow(2**31))
        model = self._request("settled", line).model
        diffusion = model.diffusion
        line = dataclasses.replace(
            line,
            negative_prompt=model.negative_prompt,
            input_size=model.pipeline_config.input_size,
            num_inference_steps=diffusion.num_inference_steps,
            guidance_scale=diffusion.guidance_scale,
            guidance_rescale=diffusion.guidance_rescale,
            guidance_rule=diffusion.guidance_rule,
            guidance_interval=diffusion.guidance_interval,
            solver=diffusion.solver,
        )
        return {name: value for name, value in dataclasses.asdict(line).items() if value not in (None, ())}

    def made(self, name: str, line: dict[str, Any]) -> str | None:
        request = self._request(name, _line(line))
        return request.file if self.archive.is_done(request) else None

    def make(self, name: str, line: dict[str, Any], tell: Tell, check: Check) -> Callable[[], str]:
        """Raises ConfigError, SamplingError, or what `check` raises."""
        request = self._request(name, _line(line))
        self.platform.reset_peak_memory()
        started = time.monotonic()
        last: Step | None = None
        try:
            self.pipeline.encode([request])
            text_s = time.monotonic() - started
            for step in self.pipeline.steps([request], check):
                last = step
                tell(step.number, step.total, functools.partial(self._preview, step.clean))
            assert last is not None, "there is at least one step"
            self.platform.synchronize()
        except torch.OutOfMemoryError as error:
            if self.pipeline.denoiser.parallel.sample_size > 1:
                raise  # the other ranks of this sample do not see the error and wait for this rank
            self.platform.release_memory()
            raise SamplingError(f"the device's memory is too small for this size: {error}") from None
        denoise_s = time.monotonic() - started - text_s
        timing = {"text_s": text_s, "denoise_s": denoise_s, "s_per_step": denoise_s / last.total, "batch": 1}
        latents = last.latents
        return lambda: self.archive.keep(request, latents, self.pipeline, timing).name

    def _preview(self, latents: torch.Tensor) -> bytes | None:
        try:
            return jpeg_of(self.pipeline.preview(latents))
        except (
            SamplingError
        ):  # an estimate beyond the decoder's range; whether the sample fails is for the steps to say
            return None
        except torch.OutOfMemoryError:
            self.platform.release_memory()
            return None

    def thumbnail(self, file: str) -> bytes:
        """JPEG of the first frame of a finished sample. Raises DataError if it cannot be read."""
        path = str(self.folder / file)
        is_image = file.endswith(".png")
        return jpeg_of(read_image(path)[0] if is_image else read_clip(build_reader("decoder"), path, [0])[0])

    def warning(self, line: dict[str, Any]) -> str | None:
        """What a settled request should know of its prompt, such as that cleaning empties it."""
        return Request(self.config.model.for_prompt(_line(line)), seed=0).warning

    def remove(self, name: str) -> None:
        for suffix in (".json", ".mp4", ".png"):  # the record first: it is what says that the sample is complete
            with contextlib.suppress(FileNotFoundError):
                (self.archive.folder / f"{name}{suffix}").unlink()
        for image in self.inputs.glob(f"{name}.*"):
            image.unlink(missing_ok=True)

    def _request(self, name: str, line: PromptConfig) -> Request:
        model = dataclasses.replace(self.config.model, num_samples_per_prompt=1)
        (request,) = requests_of(
            model, [line], self.config.seed, self.config.launch, "the request", self.config.options.max_pixels
        )
        return dataclasses.replace(request, name=name)

    @property
    def folder(self) -> Path:
        return self.archive.folder

    @property
    def inputs(self) -> Path:
        """Folder of the images that requests bring, by the name of their sample."""
        return self.archive.folder / "inputs"


def jpeg_of(frame: np.ndarray) -> bytes:
    """JPEG of a frame uint8 [H,W,3], its longer side at most 640 pixels."""
    picture = Image.fromarray(frame)
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=85)
    return file.getvalue()


def _line(values: dict[str, Any]) -> PromptConfig:
    """A line of a prompts file from its JSON."""
    return build(PromptConfig, node_from_python(values, "the request"))
