"""A sampling job: shares all prompts of a file among the data ranks, can be resumed, and survives a bad sample."""

import dataclasses
import functools
import operator
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mindspeed_mm import logs
from mindspeed_mm.config.sample import SampleConfig
from mindspeed_mm.errors import SamplingError
from mindspeed_mm.files import layout
from mindspeed_mm.parallel.collectives import from_first_rank
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.meeting import meet
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.sampling import gallery, memory
from mindspeed_mm.sampling.archive import Archive
from mindspeed_mm.sampling.pipeline import T2VPipeline, suited_to_weights
from mindspeed_mm.sampling.prompt_files import is_prompt_file, read_prompts
from mindspeed_mm.sampling.provenance import weights_of
from mindspeed_mm.sampling.requests import Request, batches, requests_of
from mindspeed_mm.sampling.residence import Residence
from mindspeed_mm.sampling.text import PromptEncoder

_log = logs.get(__name__)
_OF_ONE_SAMPLE = (SamplingError, torch.OutOfMemoryError, OSError)  # these errors end one sample, not the job


def run(config: SampleConfig, platform: Platform, parallel: ParallelContext) -> list[Path]:
    """Makes every sample that does not exist yet. Returns the files that this rank wrote.

    Raises SamplingError on the first rank, at the end of the job, if samples failed.
    """
    config = suited_to_weights(config)
    model = config.model
    file = model.prompt if is_prompt_file(model.prompt) else ""
    lines = read_prompts(model.prompt, model.max_prompts)
    requests = requests_of(model, lines, config.seed, config.launch, file, config.options.max_pixels)
    sizes = [request.model.pipeline_config.input_size for request in requests]
    config = memory.fitted(config, sizes, platform, parallel, texts_stay=False)
    model = config.model
    requests = [dataclasses.replace(one, model=dataclasses.replace(one.model, ae=model.ae)) for one in requests]
    plan = _plan(config, platform, requests) if parallel.is_first else None
    meet("the plan of sampling", parallel, for_ever=True)  # hashing weights may take minutes
    weights, done, load = from_first_rank(plan)
    config = dataclasses.replace(config, load=load)
    left = [batch for batch in batches(requests, model.micro_batch_size) if any(r.name not in done for r in batch)]
    if done and parallel.is_first:
        _log.info(f"{len(done)} of {len(requests)} samples are there already")
    mine = left[parallel.data_rank :: parallel.data_size]
    job = _Job(config, platform, parallel, weights)
    written = job.make_all(mine, done) if mine else []
    failed = meet(
        "samples", parallel, job.failed, lambda all_failed: functools.reduce(operator.or_, all_failed), for_ever=True
    )
    if parallel.is_first:
        logs.Attempts(_log, "the gallery")(lambda: gallery.write_all(Path(model.save_path)))
    meet("the gallery", parallel, for_ever=True)
    if parallel.is_first and failed:
        name, error = min(failed.items())
        raise SamplingError(
            f"{len(failed)} of {len(requests)} samples could not be made, the first is {name}: {error} "
            "(their JSON files say why; --resume tries them again)"
        )
    return written


def _plan(
    config: SampleConfig, platform: Platform, requests: list[Request]
) -> tuple[dict[str, dict[str, str]], set[str], str | None]:
    """Facts that the first rank finds for all: hashes of the weights, finished samples, and the checkpoint to load.

    The checkpoint is fixed here, since a run that is still training soon has a newer one.
    """
    load = _checkpoint(config.load)
    weights = weights_of(config)
    while load != _checkpoint(config.load):  # a newer checkpoint came while the weights were hashed
        load, weights = _checkpoint(config.load), weights_of(config)
    archive = Archive(config, weights, platform)
    done = {request.name for request in requests if archive.is_done(request)} if config.resume else set()
    return weights, done, load


def _checkpoint(load: str | None) -> str | None:
    """Checkpoint that a run's directory points to now."""
    if load is None or not layout.has_checkpoint(Path(load)):
        return load
    return str(layout.find(Path(load)).directory)


class _Job:
    """This rank's part of a job."""

    def __init__(
        self, config: SampleConfig, platform: Platform, parallel: ParallelContext, weights: dict[str, dict[str, str]]
    ):
        self.config = config
        self.platform = platform
        self.parallel = parallel
        self.archive = Archive(config, weights, platform)
        self.failed: dict[str, str] = {}  # request -> reason
        self.text_s: dict[str, float] = {}  # request -> seconds of encoding

    def make_all(self, mine: list[list[Request]], done: set[str]) -> list[Path]:
        """Encodes all texts first; then drops the text encoders and loads the other components."""
        device = self.platform.device(int(os.environ.get("LOCAL_RANK", "0")))
        residence = Residence(device, bool(self.config.options.offload))
        text = PromptEncoder.load(self.config.model, residence)
        assert text.encoders is not None, "they are loaded"
        with residence.using(text.encoders):
            mine = self._encode(text, mine)
        text.leave()
        self.platform.release_memory()
        self.pipeline = T2VPipeline.from_config(
            self.config.model,
            device=device,
            parallel=self.parallel,
            load=self.config.load,
            ema=self.config.use_ema,
            options=self.config.options,
            text=text,
            adapters=self.config.adapters,
        )
        written = []
        for number, batch in enumerate(mine):
            if self.parallel.is_first:
                _log.info(f"batch {number + 1} of {len(mine)}: {batch[0].name}, {batch[0].model.prompt[:80]!r}")
            written += self._make(batch, done)
        return written

    def _encode(self, text: PromptEncoder, mine: list[list[Request]]) -> list[list[Request]]:
        """Encodes all texts. Returns the batches without the requests whose texts failed."""
        kept = []
        requests = [request for batch in mine for request in batch]
        bar = tqdm(
            total=len(requests), desc="texts", unit="prompt", disable=not self.parallel.is_first, mininterval=1.0
        )
        for batch in mine:
            good = []
            for request in batch:
                started = time.monotonic()
                prompt = request.texts
                try:
                    text([prompt.positive, prompt.negative] if request.guided else [prompt.positive])
                    good.append(request)
                except SamplingError as error:
                    self._fail(request, error)
                self.text_s[request.name] = time.monotonic() - started
                bar.update()
            kept += [good] if good else []
        bar.close()
        return kept

    def _make(self, batch: list[Request], done: set[str]) -> list[Path]:
        """Samples a batch and writes its unfinished samples. A batch that fails is retried one sample at a time."""
        started = time.monotonic()
        self.platform.reset_peak_memory()
        try:
            latents = self.pipeline.denoise(batch, progress=self.parallel.is_first)
            self.platform.synchronize()
        except _OF_ONE_SAMPLE as error:
            if not isinstance(error, SamplingError) and self.parallel.sample_size > 1:
                raise  # the other ranks of this sample do not see the error and wait for this rank
            if len(batch) == 1:
                self._fail(batch[0], error)
                return []
            _log.warning(f"{batch[0].name} to {batch[-1].name}: {error}; trying them one by one")
            latents = None
        if latents is None:
            self.platform.release_memory()
            return [path for request in batch for path in self._make([request], done)]
        if not self.parallel.is_first_of_sample:
            return []
        steps = batch[0].model.diffusion.num_inference_steps
        assert steps is not None, "the inference JSON gives it"
        timing = {
            "denoise_s": time.monotonic() - started,
            "s_per_step": (time.monotonic() - started) / steps,
            "batch": len(batch),
        }
        written = []
        for request, one in zip(batch, latents.split(1), strict=True):
            if request.name not in done:
                written += self._write(request, one, timing)
        return written

    def _write(self, request: Request, latents: Tensor, timing: dict[str, Any]) -> list[Path]:
        try:
            return [self.archive.keep(request, latents, self.pipeline, {"text_s": self.text_s[request.name], **timing})]
        except _OF_ONE_SAMPLE as error:
            self._fail(request, error)
            return []

    def _fail(self, request: Request, error: Exception) -> None:
        _log.error(f"{request.name}: {error}")
        if self.parallel.is_first_of_sample:
            self.failed[request.name] = " ".join(str(error).split())
            try:
                self.archive.fail(request, error)
            except OSError as second:
                _log.error(f"{request.name}: its record cannot be written either ({second})")
