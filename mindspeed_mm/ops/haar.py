"""Haar transforms of videos: pure functions on [B,C,T,H,W], with the kernels as an argument.

WFVAE (2411.17459, section 3.1) splits a video into subbands by two-tap sums and differences. In 3D the transform is
causal: the first frame is repeated once in front, so that 2n+1 frames become n+1. The kernels are tensors of a released
checkpoint, hence an argument here; `kernels_3d` and `kernels_2d` build their fixed values.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

# Subbands in channel order, by their names in a released checkpoint.
# 3D: all (t, h, w) choices of sum and difference, w fastest; 2D: sum, difference over h, over w, over both.
NAMES_3D = ("h", "g", "hh", "gh", "h_v", "g_v", "hh_v", "gh_v")
NAMES_2D = ("aa", "ad", "da", "dd")
_DIFFERENCES_2D = ((0, 0), (1, 0), (0, 1), (1, 1))  # per name: difference over (h, w)

# 0.3536, not 1/sqrt(8), is what the released weights hold: transform and inverse multiply a video by 1.00026.
_ENTRY_3D = 0.3536
_ENTRY_2D = 0.5


def kernels_3d() -> Tensor:
    """[8,1,2,2,2] kernels in the order of NAMES_3D."""
    kernels = []
    for t, h, w in itertools.product((0, 1), repeat=3):
        taps = [[[(-1) ** (t * i + h * j + w * k) for k in (0, 1)] for j in (0, 1)] for i in (0, 1)]
        kernels.append([taps])
    return torch.tensor(kernels) * _ENTRY_3D


def kernels_2d() -> Tensor:
    """[4,1,2,2] kernels in the order of NAMES_2D."""
    kernels = [[[[(-1) ** (h * j + w * k) for k in (0, 1)] for j in (0, 1)]] for h, w in _DIFFERENCES_2D]
    return torch.tensor(kernels) * _ENTRY_2D


def forward_3d(video: Tensor, kernels: Tensor, first: bool = True) -> Tensor:
    """Subbands [B,8C,t,H/2,W/2] of a video [B,C,T,H,W]; channel = subband * C + c.

    first: the video starts at frame 0, which is repeated once in front; t = (T+1)//2. A later part of a video (even T)
    needs nothing from the part before it; t = T/2.
    """
    if first:
        video = torch.cat((video[:, :, :1], video), dim=2)
    batch, channels = video.shape[:2]
    bands = F.conv3d(video.flatten(0, 1).unsqueeze(1), kernels, stride=2)
    return bands.unflatten(0, (batch, channels)).transpose(1, 2).flatten(1, 2)


def inverse_3d(bands: Tensor, kernels: Tensor, first: bool = True) -> Tensor:
    """The video of `forward_3d`'s subbands: [B,8C,t,h,w] -> [B,C,2t-1,2h,2w] from frame 0 on, else [B,C,2t,2h,2w]."""
    batch, count = bands.shape[0], kernels.shape[0]
    bands = bands.unflatten(1, (count, -1)).transpose(1, 2)
    video = F.conv_transpose3d(bands.flatten(0, 1), kernels, stride=2)
    video = video.squeeze(1).unflatten(0, (batch, -1))
    return video[:, :, 1:] if first else video


def forward_2d(video: Tensor, kernels: Tensor) -> Tensor:
    """Subbands [B,4C,T,H/2,W/2] of each frame of a video [B,C,T,H,W]; channel = subband * C + c."""
    # A 3D kernel of one frame: no frame has to be moved into the batch and back.
    batch, channels = video.shape[:2]
    bands = F.conv3d(video.flatten(0, 1).unsqueeze(1), kernels.unsqueeze(2), stride=(1, 2, 2))
    return bands.unflatten(0, (batch, channels)).transpose(1, 2).flatten(1, 2)


def inverse_2d(bands: Tensor, kernels: Tensor) -> Tensor:
    """The video of `forward_2d`'s subbands, exactly: [B,4C,T,h,w] -> [B,C,T,2h,2w]."""
    batch, count = bands.shape[0], kernels.shape[0]
    bands = bands.unflatten(1, (count, -1)).transpose(1, 2)
    video = F.conv_transpose3d(bands.flatten(0, 1), kernels.unsqueeze(2), stride=(1, 2, 2))
    return video.squeeze(1).unflatten(0, (batch, -1))
