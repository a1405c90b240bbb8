"""Convolutions over time that use past frames only, and the two samplers built on them that halve or double time.

Each forward takes its `Chunk`: it says whether the clip starts here, and carries the last frames of the previous
chunk. Videos are [B,C,T,H,W].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindspeed_mm.models.wfvae.chunks import Chunk


def channels_last(video: Tensor) -> Tensor:
    """The same video, on a CPU with adjacent channels in memory.

    The norm over channels then needs no transposition and oneDNN reads the tensor directly: encoding and decoding took
    0.7 to 0.9 of the time. All modules keep the layout of their input. Other devices keep their layout; not measured
    there.
    """
    return video.contiguous(memory_format=torch.channels_last_3d) if video.device.type == "cpu" else video


class Conv3d(nn.Conv3d):
    """Conv3d that on a CPU takes oneDNN for every size.

    torch chooses oneDNN only for batch x channels x frames x height > 20,480. Below it uses a kernel that ran at 9-27
    GFLOP/s, where oneDNN ran at 38-105 (one core, 128 channels, 12-24 pixels). A chunk of a small clip is below.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and input.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            shape = (self.padding, self.stride, self.dilation, self.groups)
            return torch.ops.aten.mkldnn_convolution(input, self.weight, self.bias, *shape)
        return super().forward(input)


class CausalConv3d(nn.Module):
    """3D convolution with cubic kernels; over time it is padded at the start only, with copies of the first frame."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, padding: int | None = None
    ):
        """padding: zeros around each frame; None: as many as preserve its size at stride 1."""
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        self.past = kernel_size - 1  # frames before the current one
        self.conv = Conv3d(in_channels, out_channels, kernel_size, stride, padding=(0, padding, padding))

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:
        """[B,C,T,H,W] -> [B,C',t,H',W'] with t = (T-1)//stride + 1 at the start of a clip, T/stride behind it."""
        if self.past == 0:
            return self.conv(channels_last(video))
        if chunk.first:
            before = self.past * [video[:, :, :1]]
        else:
            kept = chunk.take(self)
            assert kept is not None, "the previous chunk keeps it"
            before = [kept]
        video = channels_last(torch.cat((*before, video), dim=2))
        chunk.keep(self, video, self.past // self.conv.stride[0])
        return self.conv(video)


class CausalDownsample(nn.Module):
    """Halves time, height and width: 2n+1 frames become n+1."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=2, padding=0)

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:
        return self.conv(F.pad(video, (0, 1, 0, 1)), chunk)  # zeros at the right and the bottom


class CausalUpsample(nn.Module):
    """Doubles time, height and width: n+1 frames become 2n+1, since frame 0 is not repeated over time."""

    def __init__(self, channels: int, t_interpolation: str):
        """t_interpolation: "trilinear" (each new frame is 3/4 its own and 1/4 its neighbour) or "nearest"."""
        super().__init__()
        self.t_interpolation = t_interpolation
        self.conv = CausalConv3d(channels, channels)

    def forward(self, video: Tensor, chunk: Chunk) -> tuple[Tensor, Chunk]:
        """The larger video, and the chunk at its frame rate. Interpolates in float32, as the original."""
        wide = self._double_time(video.float(), chunk)
        wide = F.interpolate(wide, scale_factor=(1, 2, 2), mode="trilinear")
        chunk = chunk.finer()
        return self.conv(wide.to(video.dtype), chunk), chunk

    def _double_time(self, video: Tensor, chunk: Chunk) -> Tensor:
        if chunk.first:
            return torch.cat((video[:, :, :1], self._double(video[:, :, 1:], chunk)), dim=2)
        return self._double(video, chunk)

    def _double(self, video: Tensor, chunk: Chunk) -> Tensor:
        """Doubles the frames except frame 0, so the first frame after it has no earlier neighbour."""
        if video.shape[2] == 0:
            return video
        before = chunk.take(self)
        chunk.keep(self, video, 1)
        known = 0  # frames of the result that the previous chunk has already returned
        if before is not None:
            video = torch.cat((before, video), dim=2)
            known = 1 if chunk.holds else 2
        double = F.interpolate(video, scale_factor=(2, 1, 1), mode=self.t_interpolation)
        # The last frame needs the next one for interpolation.
        return double[:, :, known : -1 if chunk.holds and not chunk.last else None]
