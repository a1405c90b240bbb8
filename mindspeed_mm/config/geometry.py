"""Sizes of videos and latents: the conversion between pixels, latents and tokens."""

import dataclasses
import math

from mindspeed_mm.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class LatentGrid:
    """Extent of a latent video, in latent frames and latent pixels."""

    frames: int
    height: int
    width: int

    @classmethod
    def of_video(cls, frames: int, height: int, width: int, strides: tuple[int, int, int]) -> "LatentGrid":
        """Latent extent of a video under a causal autoencoder with strides (t, h, w).

        The first frame has its own latent, so 8n+1 frames give n+1 latent frames at stride 8.
        """
        stride_t, stride_h, stride_w = strides
        if frames < 1 or (frames - 1) % stride_t:
            below = max(frames - 1, 0) // stride_t * stride_t + 1
            raise ConfigError(
                f"{frames} frames: need {stride_t}n+1 frames for temporal stride {stride_t}; "
                f"use {below} or {below + stride_t}"
            )
        if height < 1 or width < 1 or height % stride_h or width % stride_w:
            raise ConfigError(f"size {height}x{width}: height and width must be multiples of {stride_h} and {stride_w}")
        return cls((frames - 1) // stride_t + 1, height // stride_h, width // stride_w)

    def tokens(self, patch_size: int, patch_size_t: int = 1) -> int:
        """Number of patch tokens of the denoiser."""
        return (self.frames // patch_size_t) * (self.height // patch_size) * (self.width // patch_size)

    def shape(self, batch: int, channels: int) -> tuple[int, int, int, int, int]:
        """[B, C, T, H, W] of a latent tensor with this extent."""
        return batch, channels, self.frames, self.height, self.width


def size_like(shown: tuple[int, int], area: int, units: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in multiples of `units`, with the aspect ratio of `shown` (height, width) and about `area` pixels."""
    ratio = shown[0] / shown[1]
    sides = math.sqrt(area * ratio), math.sqrt(area / ratio)
    height, width = (max(unit, round(side / unit) * unit) for side, unit in zip(sides, units, strict=True))
    return height, width


def as_grid(grid) -> LatentGrid:
    """Converts three whole numbers (frames, height, width) to a LatentGrid."""
    return grid if isinstance(grid, LatentGrid) else LatentGrid(*(int(extent) for extent in grid))
