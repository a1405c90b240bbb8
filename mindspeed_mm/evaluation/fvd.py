"""Fréchet video distance with a feature extractor that the user gives as a TorchScript file.

The file holds a module: float32 videos [B,3,T,H,W] -> features [B,D]. Values are in [-1, 1], frames as they are in the
files. A module that takes `rescale`, `resize` and `return_features`, as the published I3D of StyleGAN-V, gets values in
[0, 255] and these three set to true.
"""

import torch
from torch import Tensor

from mindspeed_mm.data.decode.images import reason
from mindspeed_mm.errors import ConfigError, DataError
from mindspeed_mm.evaluation.samples import Video
from mindspeed_mm.ops.frechet import frechet_distance

_OF_I3D = ("rescale", "resize", "return_features")


class Extractor:
    """Features of the first `frames` frames of a video."""

    def __init__(self, path: str, frames: int, size: int | None, device: torch.device):
        """size: frames are resized to this square side first; None: left as they are. Raises ConfigError if the file is
        no TorchScript.
        """
        try:
            self.module = torch.jit.load(path, map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(f"--fvd-extractor {path}: is no TorchScript file ({reason(error)})") from None
        self.path, self.frames, self.size, self.device = path, frames, size, device
        taken = {argument.name for argument in self.module.forward.schema.arguments}
        self.is_i3d = taken.issuperset(_OF_I3D)

    @torch.no_grad()
    def __call__(self, video: Video, name: str) -> Tensor:
        """Features [D] fp64 on the host. name: of the video, for errors. Raises DataError."""
        if len(video.frames) < self.frames:
            raise DataError(f"{name}: {len(video.frames)} frames; --fvd-frames {self.frames} are needed")
        pixels = torch.from_numpy(video.frames[: self.frames]).to(self.device).permute(3, 0, 1, 2)[None].float()
        if self.size is not None:
            size = (self.frames, self.size, self.size)
            pixels = torch.nn.functional.interpolate(pixels, size, mode="trilinear", align_corners=False)
        try:
            if self.is_i3d:
                found = self.module(pixels, rescale=True, resize=True, return_features=True)
            else:
                found = self.module(pixels / 127.5 - 1)
        except RuntimeError as error:
            shape = list(pixels.shape)
            raise DataError(f"{name}: --fvd-extractor {self.path} fails on {shape}: {reason(error)}") from None
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 1 or not torch.isfinite(found).all():
            given = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(f"{name}: --fvd-extractor {self.path} gives {given}; need finite features [1,D]")
        return found[0].double().cpu()


def distance(features: list[Tensor], reference: list[Tensor]) -> dict[str, float]:
    """{"FVD": ..., "FVD videos": ..., "FVD reference videos": ...}. Raises DataError for fewer than two videos."""
    counts = (len(features), len(reference))
    if min(counts) < 2:
        raise DataError(f"FVD: {counts[0]} videos and {counts[1]} of --reference; both need two or more")
    found = frechet_distance(torch.stack(features), torch.stack(reference))
    return {"FVD": found, "FVD videos": float(counts[0]), "FVD reference videos": float(counts[1])}
