"""One pass of a clip through encoder or decoder: in temporal chunks and spatial tiles, as the config asks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.families.wfvae_spans import Span, encode_spans, spans_of, streamed_spans
from mindspeed_mm.models.wfvae import tiles
from mindspeed_mm.models.wfvae.chunks import Chunk
from mindspeed_mm.models.wfvae.decoder import Decoder
from mindspeed_mm.models.wfvae.encoder import Encoder

LOGVAR_RANGE = (-30.0, 20.0)
Draws = Sequence[torch.Generator] | None  # a generator per clip for dropout, which training needs


def moments(encoder: Encoder, config: WFVAEConfig, video: Tensor, draws: Draws = None) -> Tensor:
    """Mean and log-variance (not clamped) of the posterior, [B,2C,t,h,w], of a video [B,3,T,H,W].

    Raises ConfigError for a number of frames or a size that the strides do not divide.
    """
    frames, height, width = video.shape[2:]
    LatentGrid.of_video(frames, height, width, config.strides)
    spans = spans_of(config, encode_spans, frames)
    return in_chunks(encoder, video, spans, (frames - 1) // config.strides[0] + 1, draws)


def video_of(decoder: Decoder, config: WFVAEConfig, z: Tensor, draws: Draws = None) -> Tensor:
    """Video [B,3,T,H,W] for latents [B,C,t,h,w] before shift and scale, in the weights' dtype."""
    spans = spans_of(config, streamed_spans, z.shape[2])
    frames = (z.shape[2] - 1) * config.strides[0] + 1
    if not config.use_spatial_tiling:
        return in_chunks(decoder, z, spans, frames, draws)
    features = in_chunks(decoder.ground, z, spans, z.shape[2], draws)
    stride = config.strides[1]
    size, overlap = config.spatial_tile // stride, config.spatial_tile_overlap // stride

    def rise(tile: Tensor) -> Tensor:
        return in_chunks(decoder.rise, tile, spans, frames, draws)

    return tiles.decode(rise, features, size, overlap, stride)


def in_chunks(
    network: Callable[[Tensor, Chunk], Tensor], video: Tensor, spans: list[Span], frames: int, draws: Draws
) -> Tensor:
    """Pass a video through encoder or decoder, or a part of it, span by span and join the results, of `frames` frames."""
    if len(spans) == 1:
        return network(video, Chunk(draws=draws))
    tails: dict[nn.Module, Tensor] = {}
    pieces, joined, done = [], None, 0
    for i, (start, stop, _) in enumerate(spans):
        chunk = Chunk(first=i == 0, last=i == len(spans) - 1, holds=True, tails=tails, draws=draws)
        piece = network(video[:, :, start:stop], chunk)
        if torch.is_grad_enabled():
            pieces.append(piece)
            continue
        if joined is None:  # one buffer, because joining the pieces at the end would hold the result twice
            joined = piece.new_empty(*piece.shape[:2], frames, *piece.shape[3:])
        joined[:, :, done : done + piece.shape[2]] = piece
        done += piece.shape[2]
    return torch.cat(pieces, dim=2) if joined is None else joined


def check_shape(name: str, x: Tensor, channels: int) -> None:
    """Raises ValueError unless x is [B,channels,T,H,W] of floats."""
    if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape:
        raise ValueError(f"{name} has shape {list(x.shape)}, must be [B,{channels},T,H,W] without empty axes")
    if not x.is_floating_point():
        raise ValueError(f"{name} is {x.dtype}, must be floats; uint8 frames become a video by x / 127.5 - 1")
