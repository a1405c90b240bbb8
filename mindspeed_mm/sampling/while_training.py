"""Samples while training: the same few prompts at intervals, with the networks of the training run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mindspeed_mm import logs
from mindspeed_mm.config.run import LaunchConfig
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.errors import SamplingError
from mindspeed_mm.models.denoiser import Denoiser
from mindspeed_mm.models.text.encoders import TextEncoders
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.parallel.meeting import meet
from mindspeed_mm.sampling import sheets
from mindspeed_mm.sampling.archive import write_frames
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.prompt_files import is_prompt_file, read_prompts
from mindspeed_mm.sampling.requests import Request, requests_of
from mindspeed_mm.sampling.residence import Residence
from mindspeed_mm.sampling.text import PromptEncoder, tokenizers_of
from mindspeed_mm.sampling.writer import write_image

_log = logs.get(__name__)
SHEET = "contact_sheet.png"


class TrainingSamples:
    """Writes `folder`/iter_0000100/video_000000.mp4 ... and contact_sheet.png with the networks' current weights.

    The prompts are encoded once. Each call uses the same inputs and noise, so that pictures of two iterations differ
    by the weights alone.
    """

    def __init__(
        self,
        model: SampleModelConfig,
        denoiser: Denoiser,
        autoencoder: WFVAE,
        encoders: TextEncoders,
        device: torch.device,
        folder: str | Path,
        seed: int = 1234,
        launch: LaunchConfig | None = None,
    ):
        """model: the inference JSON; its weights are not read. launch: the layout, for checks of the prompts' sizes.

        Raises ConfigError and DataError for prompts that cannot be sampled.
        """
        self.denoiser = denoiser
        self.autoencoder = autoencoder
        self.folder = Path(folder)
        self.residence = Residence(device)
        self.text = PromptEncoder(encoders, tokenizers_of(model), self.residence)
        self.model = dataclasses.replace(model, weight_dtype=_dtype_name(denoiser))
        file = model.prompt if is_prompt_file(model.prompt) else ""
        self.requests = requests_of(
            self.model, read_prompts(model.prompt, model.max_prompts), seed, launch or LaunchConfig(), file
        )

    def __call__(self, iteration: int) -> list[Path]:
        """Samples all prompts; collective. Returns the files that this rank wrote. Restores the denoiser's train or
        eval mode.
        """
        was_training = self.denoiser.training
        try:
            pipeline = T2VPipeline(self.model, self.denoiser, self.autoencoder, self.text, self.residence)
            return write_samples(pipeline, self.requests, self.folder_of(iteration))
        finally:
            self.denoiser.train(was_training)

    def folder_of(self, iteration: int) -> Path:
        """Where the videos of an iteration are written."""
        return self.folder / f"iter_{iteration:07d}"


def write_samples(pipeline: T2VPipeline, requests: Sequence[Request], folder: Path) -> list[Path]:
    """Samples requests into `folder`, shared among the data ranks, with a contact sheet; collective.

    A sample that is not finite or cannot be written is logged and left out. Returns the files that this rank wrote.
    """
    parallel = pipeline.denoiser.parallel
    written = []
    for request in requests[parallel.data_rank :: parallel.data_size]:
        try:
            latents = pipeline.denoise([request], progress=parallel.is_first)
            if parallel.is_first_of_sample:
                write_frames(request, pipeline.finished([request], latents)[0], folder / request.file)
                written.append(folder / request.file)
        except (SamplingError, OSError) as error:
            _log.warning(f"{folder.name}/{request.name}: {error}")
    meet("samples", parallel)
    if parallel.is_first:
        try:
            written += _write_sheet(requests, folder)
        except OSError as error:
            _log.warning(f"{folder.name}/{SHEET}: {error}")
    return written


def _write_sheet(requests: Sequence[Request], folder: Path) -> list[Path]:
    made = [request for request in requests if (folder / request.file).is_file()]
    if not made:
        return []
    videos = [np.stack(list(sheets.read_frames(folder / request.file))) for request in made]
    labels = [f"{request.name}  seed {request.seed}  {request.model.prompt}" for request in made]
    write_image(sheets.contact_sheet(videos, labels)[None], folder / SHEET)
    return [folder / SHEET]


def _dtype_name(network: nn.Module) -> str:
    """Dtype of a network's weights, named as in a config."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names[next(network.parameters()).dtype]
