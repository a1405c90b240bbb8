"""Building blocks of encoder and decoder. Attribute names give the names in the released state dicts.

Every block maps videos [B,C,T,H,W] and takes its `Chunk`, so that blocks chain; blocks that treat frames separately
ignore it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindspeed_mm.models.wfvae.causal_conv import CausalConv3d
from mindspeed_mm.models.wfvae.chunks import Chunk
from mindspeed_mm.ops import haar
from mindspeed_mm.ops.attention import attend_frames

VIDEO_CHANNELS = 3
_NORM_EPS = 1e-6
_NORM_GROUPS = 32


class Chain(nn.Sequential):
    """Parts one after the other, all on the same chunk."""

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self:
            video = part(video, chunk)
        return video


# ------------------------------------------------------------------------------------------------------------- frames


def fold_frames(video: Tensor) -> Tensor:
    """[B,C,T,H,W] -> [B*T,C,H,W]: frames as a batch of images."""
    return video.transpose(1, 2).flatten(0, 1)


def unfold_frames(frames: Tensor, batch: int) -> Tensor:
    """[B*T,C,H,W] -> [B,C,T,H,W]."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


class FrameConv2d(nn.Conv2d):
    """3x3 convolution of each frame."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return unfold_frames(super().forward(fold_frames(video)), video.shape[0])


class FrameDownsample(nn.Module):
    """Halves height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:
        frames = F.pad(fold_frames(video), (0, 1, 0, 1))  # zeros at the right and the bottom
        return unfold_frames(self.conv(frames), video.shape[0])


class FrameUpsample(nn.Module):
    """Doubles height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, video: Tensor, chunk: Chunk) -> tuple[Tensor, Chunk]:
        """The larger video, and the chunk, whose frame rate stays: the counterpart of `CausalUpsample`."""
        frames = F.interpolate(fold_frames(video), scale_factor=2.0, mode="nearest")
        return unfold_frames(self.conv(frames), video.shape[0]), chunk


# ------------------------------------------------------------------------------------------------------------- blocks


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each position, [B,C,...]; unlike group norm it does not mix frames."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(_NORM_GROUPS, channels, eps=_NORM_EPS)


NORMS = {"groupnorm": _group_norm, "layernorm": ChannelNorm}


def make_norm(norm_type: str, channels: int) -> nn.Module:
    """The norm of `WFVAEConfig.norm_type`; group norm takes its statistics over all frames it is given."""
    return NORMS[norm_type](channels)


class Dropout(nn.Module):
    """Dropout (1207.0580) with draws of each clip's own, so that a clip loses the same in any batch, on any layout."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, chunk: Chunk) -> Tensor:
        """x: [B,...], or frames [B*T,...]; in training `chunk.draws` has B generators, else ValueError."""
        if not self.training or self.rate == 0:
            return x
        if chunk.draws is None:
            raise ValueError(f"dropout {self.rate} in training needs a generator per clip; without dropout call eval()")
        clip = (x.shape[0] // len(chunk.draws), *x.shape[1:])
        # Contiguous, whatever x is: in another order of memory, other numbers would be kept.
        kept = [x.new_empty(clip).bernoulli_(1 - self.rate, generator=draws) for draws in chunk.draws]
        return x * torch.cat(kept) / (1 - self.rate)


class ResidualBlock2D(nn.Module):
    """norm, SiLU, 3x3 convolution, twice, beside the identity; on each frame, group norm's statistics included."""

    def __init__(self, channels: int, norm_type: str, dropout: float):
        super().__init__()
        self.norm1 = make_norm(norm_type, channels)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm2 = make_norm(norm_type, channels)
        self.dropout = Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:
        frames = fold_frames(video)
        h = self.conv1(F.silu(self.norm1(frames)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h)), chunk))
        return unfold_frames(frames + h, video.shape[0])


class ResidualBlock3D(nn.Module):
    """norm, SiLU, causal convolution, twice, beside the identity or, where the width changes, a linear map."""

    def __init__(self, in_channels: int, out_channels: int, norm_type: str, dropout: float):
        super().__init__()
        self.norm1 = make_norm(norm_type, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = make_norm(norm_type, out_channels)
        self.dropout = Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        changes_width = in_channels != out_channels
        self.nin_shortcut = CausalConv3d(in_channels, out_channels, kernel_size=1) if changes_width else None

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:
        h = self.conv1(F.silu(self.norm1(video)), chunk)
        h = F.silu(self.norm2(h))  # a separate line, so that the first convolution's output is freed before the second
        h = self.conv2(self.dropout(h, chunk), chunk)
        return h + (video if self.nin_shortcut is None else self.nin_shortcut(video, chunk))


class FrameAttention(nn.Module):
    """Self-attention among the positions of each frame, one head as wide as the channels, beside the identity."""

    def __init__(self, channels: int, norm_type: str):
        super().__init__()
        self.norm = make_norm(norm_type, channels)
        self.q = CausalConv3d(channels, channels, kernel_size=1)
        self.k = CausalConv3d(channels, channels, kernel_size=1)
        self.v = CausalConv3d(channels, channels, kernel_size=1)
        self.proj_out = CausalConv3d(channels, channels, kernel_size=1)

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:
        batch, channels, frames, height, width = video.shape
        h = self.norm(video)
        query, key, value = (self._positions(part(h, chunk)) for part in (self.q, self.k, self.v))
        h = attend_frames(query, key, value)  # scale 1/sqrt(C)
        h = h.reshape(batch, frames, height, width, channels).movedim(-1, 1)
        return video + self.proj_out(h, chunk)

    @staticmethod
    def _positions(video: Tensor) -> Tensor:
        """[B,C,T,H,W] -> [B*T,1,H*W,C]."""
        return fold_frames(video).flatten(2).transpose(1, 2).unsqueeze(1)


# ----------------------------------------------------------------------------------------------------------- wavelets


class _Kernel(nn.Module):
    """A parameter that is never trained. It is read by a call, since offloading brings weights for a call alone."""

    def __init__(self, kernel: Tensor):
        super().__init__()
        self.weight = nn.Parameter(kernel, requires_grad=False)

    def forward(self) -> Tensor:
        return self.weight.clone()  # behind the call the parameter may be elsewhere


class _FixedFilter(nn.Module):
    """One kernel under its released name `<filter>_conv.conv.weight`."""

    def __init__(self, kernel: Tensor):
        super().__init__()
        self.conv = _Kernel(kernel)

    def forward(self) -> Tensor:
        return self.conv()


class HaarTransform3D(nn.Module):
    """Halves time, height and width, 8 subbands per channel."""

    subbands = len(haar.NAMES_3D)

    def __init__(self):
        super().__init__()
        for name, kernel in zip(haar.NAMES_3D, haar.kernels_3d().split(1), strict=True):
            self.add_module(f"{name}_conv", _FixedFilter(kernel.clone()))

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:
        kernels = [getattr(self, f"{name}_conv")() for name in haar.NAMES_3D]
        return haar.forward_3d(video, torch.cat(kernels), first=chunk.first)


class _KernelBuffers(nn.Module):
    """Kernels as buffers, each under its released name."""

    names: tuple[str, ...]

    def __init__(self, kernels: Tensor):
        super().__init__()
        for name, kernel in zip(self.names, kernels.split(1), strict=True):
            self.register_buffer(name, kernel.clone())

    @property
    def subbands(self) -> int:
        return len(self.names)

    def kernels(self) -> Tensor:
        return torch.cat([getattr(self, name) for name in self.names])


class InverseHaarTransform3D(_KernelBuffers):
    """Undoes `HaarTransform3D`."""

    names = haar.NAMES_3D

    def __init__(self):
        super().__init__(haar.kernels_3d())

    def forward(self, bands: Tensor, chunk: Chunk) -> Tensor:
        return haar.inverse_3d(bands, self.kernels(), first=chunk.first)


class HaarTransform2D(_KernelBuffers):
    """Halves height and width of each frame, 4 subbands per channel."""

    names = haar.NAMES_2D

    def __init__(self):
        super().__init__(haar.kernels_2d())

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:
        return haar.forward_2d(video, self.kernels())


class InverseHaarTransform2D(_KernelBuffers):
    """Undoes `HaarTransform2D`."""

    names = haar.NAMES_2D

    def __init__(self):
        super().__init__(haar.kernels_2d())

    def forward(self, bands: Tensor, chunk: Chunk) -> Tensor:
        return haar.inverse_2d(bands, self.kernels())


# Rows: the names in the configs.
WAVELETS = {
    "HaarWaveletTransform2D": HaarTransform2D,
    "HaarWaveletTransform3D": HaarTransform3D,
    "InverseHaarWaveletTransform2D": InverseHaarTransform2D,
    "InverseHaarWaveletTransform3D": InverseHaarTransform3D,
}
