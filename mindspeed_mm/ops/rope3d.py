"""Rotary position embedding (2104.09864) over the three axes of a video.

A head's channels are split 4:6:6 over t, h and w; each part rotates its two halves by its own axis' position. Tokens
are ordered t-major, then h, then w.
"""

import torch
from torch import Tensor

from mindspeed_mm.ops import ascend

_BASE = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head for t, h and w."""
    if head_dim % 16:
        raise ValueError(f"head_dim {head_dim} is not a multiple of 16")
    unit = head_dim // 16
    return 4 * unit, 6 * unit, 6 * unit


def tables(
    extent: tuple[int, int, int],
    head_dim: int,
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    offset: tuple[int, int, int] = (0, 0, 0),
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [S,1,1,head_dim] fp32, for S = t*h*w tokens of a grid of `extent` (t, h, w) patches.

    Positions start at `offset` and are divided by `scale`, per axis.
    """
    angles = []
    for axis, (size, dim) in enumerate(zip(extent, axis_dims(head_dim), strict=True)):
        frequencies = 1.0 / _BASE ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
        positions = torch.arange(offset[axis], offset[axis] + size, dtype=torch.float32, device=device) / scale[axis]
        angle = torch.outer(positions, frequencies)
        shape = [1, 1, 1, dim]
        shape[axis] = size
        angles.append(torch.cat((angle, angle), dim=-1).view(shape).expand(*extent, dim))
    grid = torch.cat(angles, dim=-1).reshape(-1, 1, 1, head_dim)
    return grid.cos(), grid.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys x [S,B,H,D] by tables [S,1,1,D]: computed in fp32, returned in x's dtype."""
    if x.device.type == "npu":
        return ascend.rotate(x, cos, sin, axis_dims(x.shape[-1]))
    return plain_rotate(x, cos, sin)


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` in operators of every device."""
    halves = [part for dim in axis_dims(x.shape[-1]) for part in (dim // 2, dim // 2)]
    t1, t2, h1, h2, w1, w2 = x.float().split(halves, dim=-1)
    turned = torch.cat((-t2, t1, -h2, h1, -w2, w1), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)
