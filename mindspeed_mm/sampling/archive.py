"""A folder of samples: each is a video or an image with a JSON record. The record is written last and marks the sample
complete.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.config.sample import SampleConfig
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.sampling import record
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.provenance import sha256
from mindspeed_mm.sampling.requests import Request
from mindspeed_mm.sampling.writer import write_image, write_video

_log = logs.get(__name__)


class Archive:
    """Writes the samples of one config and one set of weights to `config.model.save_path`."""

    def __init__(self, config: SampleConfig, weights: dict[str, dict[str, str]], platform: Platform):
        """weights: paths and hashes, as `provenance.weights_of` returns them."""
        self.config = config
        self.weights = weights
        self.platform = platform
        self.folder = Path(config.model.save_path)

    def is_done(self, request: Request) -> bool:
        """True if this exact sample exists, complete and undamaged."""
        return record.is_done(self._record_path(request), self._sample_block(request))

    def keep(self, request: Request, latents: Tensor, pipeline: T2VPipeline, timing: dict[str, Any]) -> Path:
        """Decodes clean latents [1,C,T,H,W], writes the file, then the record with `timing`. Returns the file."""
        path = self.folder / request.file
        started = time.monotonic()
        frames = pipeline.finished([request], latents)[0]
        decoded = time.monotonic()
        write_frames(request, frames, path)
        timing = {
            **timing,
            "decode_s": decoded - started,
            "write_s": time.monotonic() - decoded,
            "peak_memory_bytes": self.platform.peak_memory(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        entry = {"status": record.DONE, "file": path.name, "sha256": sha256(path), **self._blocks(request)}
        mode = pipeline.guidance_mode(request, timing["batch"])
        entry["run"] = record.run_block(self.config, pipeline.denoiser.parallel, self.platform, mode)
        record.write(self._record_path(request), {**entry, "timing": timing})
        _log.info(f"wrote {path} ({timing['denoise_s']:.1f} s + {timing['decode_s']:.1f} s)")
        return path

    def fail(self, request: Request, error: Exception) -> None:
        """Records that a sample failed, and deletes an earlier file of its name."""
        for suffix in (".mp4", ".png"):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / f"{request.name}{suffix}").unlink()
        reason = " ".join(str(error).split())
        record.write(self._record_path(request), {"status": record.FAILED, "error": reason, **self._blocks(request)})

    def _blocks(self, request: Request) -> dict[str, Any]:
        return {"sample": self._sample_block(request), "weights": self.weights}

    def _sample_block(self, request: Request) -> dict[str, Any]:
        return record.sample_block(request, self.config, self.weights)

    def _record_path(self, request: Request) -> Path:
        return self.folder / f"{request.name}.json"


def write_frames(request: Request, frames, path: Path) -> None:
    """Writes a request's frames [T,H,W,3] uint8 as a video at its frame rate, or as an image."""
    if request.is_image:
        write_image(frames, path)
    else:
        write_video(frames, path, request.model.rate)
