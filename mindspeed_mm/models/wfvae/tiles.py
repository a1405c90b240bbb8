"""Spatial tiles: decodes large frames in pieces, so that memory depends on the tile, not on the frame.

Only the decoder's convolutions are tiled. The layers before them, at the latents' size, run on whole frames: they are
small, and their attention covers the whole frame. A tile lacks the pixels beyond its edge, so its outermost pixels are
wrong. Neighbours overlap: the quarter next to an edge is dropped, and the half between is blended.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from mindspeed_mm.families.wfvae_spans import tile_starts


def weights(begins: list[int], size: int, length: int) -> Tensor:
    """Weight of each tile at each position [tiles, length]; the weights of a position sum to 1.

    In the overlap with a neighbour, a tile's weight is 0 in the quarter next to its edge and rises over the next half.
    """
    position = torch.arange(length) + 0.5
    rows = []
    for number, begin in enumerate(begins):
        row = ((position > begin) & (position < begin + size)).float()
        if number > 0:
            shared = begins[number - 1] + size - begin
            row *= ((position - begin - shared / 4) / (shared / 2)).clamp(0, 1)
        if number + 1 < len(begins):
            shared = begin + size - begins[number + 1]
            row *= ((begin + size - position - shared / 4) / (shared / 2)).clamp(0, 1)
        rows.append(row)
    return torch.stack(rows) / torch.stack(rows).sum(0)


def decode(rise: Callable[[Tensor], Tensor], features: Tensor, size: int, overlap: int, stride: int) -> Tensor:
    """Video [B,3,T,H,W] of features [B,D,t,h,w], by `rise` on tiles of `size` latent pixels; blended in fp32.

    overlap: least overlap of neighbours in latent pixels, at most half of `size`; stride: pixels per latent pixel.
    """
    height, width = features.shape[3:]
    rows, columns = tile_starts(height, size, overlap), tile_starts(width, size, overlap)
    if len(rows) == len(columns) == 1:
        return rise(features)
    high, wide = min(size, height), min(size, width)
    down = weights([row * stride for row in rows], high * stride, height * stride)
    across = weights([column * stride for column in columns], wide * stride, width * stride)
    video = None
    for (i, top), (j, left) in itertools.product(enumerate(rows), enumerate(columns)):
        piece = rise(features[:, :, :, top : top + high, left : left + wide])
        if video is None:
            shape = (*piece.shape[:3], height * stride, width * stride)
            video = torch.zeros(shape, dtype=torch.float32, device=features.device)
        y = slice(top * stride, (top + high) * stride)
        x = slice(left * stride, (left + wide) * stride)
        video[..., y, x] += piece * (down[i, y, None] * across[j, x]).to(video.device)
    assert video is not None, "there is at least one tile"
    return video.to(features.dtype)
