"""Optical flow between frames, without weights: Lucas and Kanade (1981), from coarse to fine."""

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW, _SPREAD = 9, 2.0  # pixels: side and deviation of the window that is taken to move as one
_ROUNDS = 3  # corrections at each scale
_COARSEST = 12  # pixels of the shorter side at the coarsest scale
_NOISE = 2e-4  # squared brightness per pixel, in [0, 1]^2, below which an edge counts as noise and does not move
_BLUR = (0.25, 0.5, 0.25)


def flow(frames: Tensor) -> Tensor:
    """Movement [N-1,2,H,W] in pixels, across and down, of each pixel from a frame to the next.

    frames: brightness [N,H,W] in [0, 1]. Even areas, and areas of weak noise, do not move. A movement of more than about
    a third of the shorter side is not found.
    """
    scales = [frames[:, None].float()]
    while min(scales[-1].shape[-2:]) >= 2 * _COARSEST:
        scales.append(F.avg_pool2d(_blurred(scales[-1]), 2, ceil_mode=True))
    found = torch.zeros(len(frames) - 1, 2, *scales[-1].shape[-2:], device=frames.device)
    for pictures in reversed(scales):
        found = _enlarged(found, pictures.shape[-2:])
        smooth = _blurred(pictures)
        for _ in range(_ROUNDS):
            found = _corrected(smooth[:-1], smooth[1:], found)
        found = _window(found)  # a window at the border of something that moves overshoots; its neighbours do not
    return found


def brightness(video: Tensor) -> Tensor:
    """[N,H,W] in [0, 1] of frames uint8 [N,H,W,3], by the weights of BT.709."""
    weights = torch.tensor([0.2126, 0.7152, 0.0722], device=video.device)
    return (video.float() / 255) @ weights


def _corrected(first: Tensor, second: Tensor, moved: Tensor) -> Tensor:
    """One round: for each window the one movement that explains both frames, given `second` moved back by `moved`.

    It is solved as a whole, not as a change: pixels of a window may have moved back by different amounts so far.
    """
    back = _sampled(second, moved)
    across, down = _slopes((first + back) / 2)
    left = back - first - across * moved[:, :1] - down * moved[:, 1:]
    products = torch.cat((across * across, across * down, down * down, across * left, down * left), 1)
    xx, xy, yy, xt, yt = _window(products).unbind(1)
    # Draws windows without edges to no movement. It fades where there are edges, whose movement it would shorten.
    noise = _NOISE * _NOISE / (_NOISE + xx + yy)
    xx, yy = xx + noise, yy + noise
    determinant = xx * yy - xy * xy
    found = torch.stack((xy * yt - yy * xt, xy * xt - xx * yt), 1) / determinant[:, None]
    return moved + (found - moved).clamp(-1, 1)  # a linear model holds for a pixel or so


def _slopes(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes of brightness across and down, by central differences."""
    wide = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    return across, (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2


def _sampled(pictures: Tensor, moved: Tensor) -> Tensor:
    """Each picture read where its pixels have moved to, bilinear; outside, the border's value."""
    height, width = pictures.shape[-2:]
    rows = torch.arange(height, device=moved.device)[:, None] + moved[:, 1]
    columns = torch.arange(width, device=moved.device) + moved[:, 0]
    places = torch.stack((2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1), -1)
    return F.grid_sample(pictures, places, mode="bilinear", padding_mode="border", align_corners=True)


def _enlarged(moved: Tensor, size: torch.Size) -> Tensor:
    """The movement at another size, in its pixels."""
    if moved.shape[-2:] == size:
        return moved
    scale = torch.tensor([size[1] / moved.shape[-1], size[0] / moved.shape[-2]], device=moved.device)
    return F.interpolate(moved, size, mode="bilinear", align_corners=False) * scale[:, None, None]


def _blurred(pictures: Tensor) -> Tensor:
    return _separable(pictures, torch.tensor(_BLUR, device=pictures.device))


def _window(values: Tensor) -> Tensor:
    """Weighted mean of each channel over the window around each pixel."""
    places = torch.arange(_WINDOW, device=values.device) - _WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * _SPREAD**2))
    return _separable(values, weights / weights.sum())


def _separable(values: Tensor, weights: Tensor) -> Tensor:
    """Convolution [N,C,H,W] of rows and columns with the same weights; the border's values go on outside."""
    channels, half = values.shape[1], len(weights) // 2
    kernel = weights.expand(channels, 1, 1, -1)
    wide = F.pad(values, (half, half, half, half), mode="replicate")
    return F.conv2d(F.conv2d(wide, kernel, groups=channels), kernel.transpose(2, 3), groups=channels)
