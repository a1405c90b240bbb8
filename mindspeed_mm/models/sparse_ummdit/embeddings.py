"""Inputs of the denoiser: patches, and the condition made of sigma and the pooled text."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cuts each latent frame into patch_size x patch_size patches: [B,C,T,H,W] -> [S,B,D], t-major."""

    def __init__(self, in_channels: int, width: int, patch_size: int, bias: bool = True):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, latents: Tensor) -> Tensor:
        batch = latents.shape[0]
        frames = self.proj(latents.transpose(1, 2).flatten(0, 1))  # [B*T,D,h,w]
        tokens = frames.flatten(2).unflatten(0, (batch, -1))  # [B,T,D,h*w]
        return tokens.permute(1, 3, 0, 2).flatten(0, 1)


def unpatchify(tokens: Tensor, extent: tuple[int, int, int], patch_size: int, channels: int) -> Tensor:
    """[S,B,patch*patch*C] -> [B,C,T,H,W] for a grid of `extent` (t, h, w) patches; within a patch the channel is last."""
    t, h, w = extent
    x = tokens.reshape(t, h, w, -1, patch_size, patch_size, channels)
    return x.permute(3, 6, 0, 1, 4, 2, 5).reshape(-1, channels, t, h * patch_size, w * patch_size)


def sinusoids(timestep: Tensor, width: int) -> Tensor:
    """[B] -> [B,width] fp32: cosines, then sines, of the timestep at geometric frequencies (1706.03762, section 3.5)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angles = timestep.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TwoLayer(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeTextEmbed(nn.Module):
    """The condition of every norm: an embedding of the timestep plus one of the pooled text features, fp32 [B,width]."""

    def __init__(self, width: int, pooled_width: int):
        super().__init__()
        self.width = width
        self.timestep_embedder = TwoLayer(width, width)
        self.text_embedder = TwoLayer(pooled_width, width)

    def forward(self, sigma: Tensor, pooled: Tensor) -> Tensor:
        timestep = 1000.0 * sigma  # the network was trained on 0..1000
        time = self.timestep_embedder(sinusoids(timestep, self.width).to(pooled.dtype))
        return (time + self.text_embedder(pooled)).float()
