"""Similarity of two videos: PSNR and SSIM, on tensors in [0,1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

# The constants of the SSIM paper (Wang et al. 2004, section III.C): window of 11 pixels, sigma 1.5, K1, K2.
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03
_LIMIT_DB = 100.0  # for equal videos


def psnr(video: Tensor, other: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB [B] of videos [B,C,T,H,W] in [0,1], at most 100; the error is over all frames."""
    error = (video.float() - other.float()).square().flatten(1).mean(1)
    return (-10 * torch.log10(error)).clamp_max(_LIMIT_DB)


def ssim(video: Tensor, other: Tensor) -> Tensor:
    """Structural similarity [B] of videos [B,C,T,H,W] in [0,1], a mean over channels, frames and whole windows.

    Raises ValueError for frames that are smaller than the window of 11 x 11 pixels.
    """
    if min(video.shape[-2:]) < _WINDOW:
        raise ValueError(f"frames of {video.shape[-2]}x{video.shape[-1]}; SSIM needs {_WINDOW}x{_WINDOW} pixels")
    batch = video.shape[0]
    x, y = (part.float().transpose(1, 2).reshape(-1, 1, *part.shape[-2:]) for part in (video, other))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).reshape(batch, -1).mean(1)


def _blur(images: Tensor) -> Tensor:
    """Gaussian means of whole windows, [N,1,H,W] -> [N,1,H-10,W-10]."""
    places = torch.arange(_WINDOW, dtype=torch.float32, device=images.device) - _WINDOW // 2
    weights = torch.softmax(-(places**2) / (2 * _SIGMA**2), dim=0)
    images = F.conv2d(images, weights.view(1, 1, -1, 1))
    return F.conv2d(images, weights.view(1, 1, 1, -1))
