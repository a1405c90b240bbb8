"""Makes samples for the page, one at a time, with progress at every step. This file knows no web."""

import contextlib
import dataclasses
import re
import secrets
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mindspeed_mm.config.sample import PromptConfig, SampleConfig
from mindspeed_mm.errors import SamplingError
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.sampling import record
from mindspeed_mm.sampling.archive import Archive
from mindspeed_mm.sampling.denoise import Step
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.requests import Request, requests_of

_SAMPLE_FILE = re.compile(r"[A-Za-z0-9_]+\.(mp4|png|json)")
_PREVIEW_SHARE = 0.1  # share of the time that steps take


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """Progress after step `number` of `total`. preview: a new first frame [H,W,3] uint8 of the clean estimate, or
    None.
    """

    number: int
    total: int
    elapsed_s: float
    preview: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A sample is complete. entry: its record, with its name under "name". warning: see `Request.warning`."""

    entry: dict[str, Any]
    warning: str | None = None


class _Stopped(Exception):
    """The requester has cancelled the sample."""


class Studio:
    """Makes samples for a page, and lists those in its folder."""

    def __init__(
        self, config: SampleConfig, pipeline: T2VPipeline, platform: Platform, weights: dict[str, dict[str, str]]
    ):
        """weights: paths and hashes, as `provenance.weights_of` returns them."""
        self.config = config
        self.pipeline = pipeline
        self.platform = platform
        self.archive = Archive(config, weights, platform)
        self._busy = threading.Lock()
        self._owner: str | None = None  # requester of the current sample
        self._stop = threading.Event()

    def stop(self, owner: str) -> None:
        """Ends the sample that `owner` requested, within a step; other samples go on."""
        if owner == self._owner:
            self._stop.set()

    def make(self, line: PromptConfig, owner: str = "") -> Generator[Progress | Done, None, None]:
        """Samples a line of a prompts file; closing the iterator ends the work after the current step.

        Without a seed one is drawn. Raises ConfigError before any work, SamplingError if the sample cannot be
        finished. `stop` ends it within a step: the iterator then ends without a `Done`.
        """
        request = self._request(line)
        with self._busy, contextlib.suppress(_Stopped):
            self._stop.clear()
            self._owner = owner
            try:
                yield from self._make(request)
            finally:
                self._owner = None

    def _make(self, request: Request) -> Iterator[Progress | Done]:
        """`make` for one request, on a device without other work."""
        self.platform.reset_peak_memory()
        started = time.monotonic()
        preview_s, shown = 0.0, started - 1
        last: Step | None = None
        try:
            text = self._encode(request)
            for step in self.pipeline.steps([request], self._unless_stopped):
                last, preview, now = step, None, time.monotonic()
                if (now - shown) * _PREVIEW_SHARE >= preview_s and step.number < step.total:
                    preview = self._preview(step)
                    shown = time.monotonic()
                    preview_s = shown - now
                yield Progress(step.number, step.total, time.monotonic() - started, preview)
            assert last is not None, "there is at least one step"
            self.platform.synchronize()
            total_s = time.monotonic() - started
            timing = {"text_s": text, "denoise_s": total_s - text, "s_per_step": (total_s - text) / last.total}
            self.archive.keep(request, last.latents, self.pipeline, {**timing, "batch": 1})
        except torch.OutOfMemoryError as error:
            self.platform.release_memory()
            raise SamplingError(f"the device's memory is too small for this size: {error}") from None
        entry = record.read(self.archive.folder / f"{request.name}.json")
        if entry is None:
            raise SamplingError(f"{request.name}: its record cannot be read back; was the folder changed?")
        yield Done({**entry, "name": request.name}, request.warning)

    def _unless_stopped(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def history(self, limit: int) -> list[dict[str, Any]]:
        """Records of the folder's finished samples, the latest first."""
        entries = [entry for entry in record.read_all(self.archive.folder) if entry["status"] == record.DONE]
        return sorted(entries, key=lambda entry: entry["timing"]["finished"], reverse=True)[:limit]

    def file(self, name: str) -> Path | None:
        """The sample's file of this name in the folder; None for other names, and for paths that lead out of the
        folder.
        """
        if not _SAMPLE_FILE.fullmatch(name):
            return None
        path = (self.archive.folder / name).resolve()
        return path if path.parent == self.archive.folder.resolve() and path.is_file() else None

    def _preview(self, step: Step) -> np.ndarray | None:
        try:
            return self.pipeline.preview(step.clean)
        except (
            SamplingError
        ):  # an estimate beyond the decoder's range; whether the sample fails is for the steps to say
            return None

    def _encode(self, request: Request) -> float:
        """Encodes the texts, which are then cached. Returns the seconds it took."""
        started = time.monotonic()
        self.pipeline.encode([request])
        return time.monotonic() - started

    def _request(self, line: PromptConfig) -> Request:
        """A request with a name that no sample in the folder has yet."""
        if line.seed is None:
            line = dataclasses.replace(line, seed=secrets.randbelow(2**31))
        model = dataclasses.replace(self.config.model, num_samples_per_prompt=1)
        (request,) = requests_of(
            model, [line], self.config.seed, self.config.launch, "the page", self.config.options.max_pixels
        )
        name = f"page_{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(3)}"
        return dataclasses.replace(request, name=name)
