"""WFVAE, the video autoencoder of Open-Sora Plan v1.5 (WF-VAE, 2411.17459), at strides 8x8x8 or 4x8x8.

Its state dict has the keys of a released WFVAE checkpoint. Forward passes leave no state on the modules. Gradients are
recorded as usual in torch: call it under `torch.no_grad()` to encode or decode only.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mindspeed_mm import logs
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.wfvae import tiles
from mindspeed_mm.models.wfvae.chunks import Chunk, Span, encode_spans, streamed_spans, without_a_single_frame
from mindspeed_mm.models.wfvae.decoder import Decoder
from mindspeed_mm.models.wfvae.encoder import Encoder
from mindspeed_mm.models.wfvae.layers import VIDEO_CHANNELS
from mindspeed_mm.schema import check

_LOG = logs.get(__name__)
_LOGVAR_RANGE = (-30.0, 20.0)


class WFVAE(nn.Module):
    """Autoencoder of videos [B,3,T,H,W] in [-1,1] with T = n*strides[0] + 1; an image is a video of one frame.

    Inputs may have any float dtype; they are computed, and returned, in the dtype of the weights. With
    `config.use_tiling`, clips pass in temporal chunks with the same result; clips of fewer than 2*strides[0] + 1 frames
    always pass whole. With `config.use_spatial_tiling`, decoding takes overlapping tiles of large frames (see `tiles`).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: WFVAEConfig):
        """Raises ConfigError if the config is impossible."""
        super().__init__()
        check(config)
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.reset_statistics()

    def reset_statistics(self, device: torch.device | str | None = None) -> None:
        """Sets shift and scale [1,C,1,1,1] from the config.

        They are not in the state dict, so a module built on the meta device needs this call after its weights are
        loaded.
        """
        shift = self.config.shift or (0.0,) * self.config.latent_dim
        scale = self.config.scale or (1.0,) * self.config.latent_dim
        for name, values in (("shift", shift), ("scale", scale)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, -1, 1, 1, 1), persistent=False)

    @property
    def strides(self) -> tuple[int, int, int]:
        """(t, h, w) compression."""
        return self.config.strides

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_out.weight.dtype

    def encode(self, video: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents (z - shift) * scale [B,C,t,h,w] of a video [B,3,T,H,W], with z drawn from the posterior.

        The noise is drawn in float32 on the generator's device; without one, by torch's global CPU generator.
        """
        mean, logvar = self.encode_moments(video)
        device = "cpu" if generator is None else generator.device
        return self.latents(mean, logvar, torch.randn(mean.shape, generator=generator, device=device).to(mean))

    def latents(self, mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        """Latents of a posterior from `encode_moments`, drawn with the given standard normal noise."""
        return (mean + torch.exp(0.5 * logvar) * noise - self.shift) * self.scale

    def encode_moments(self, video: Tensor, draws: Sequence[torch.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (in [-30, 20]) of the posterior, each [B,C,t,h,w], before shift and scale.

        draws: a generator per clip for dropout, which training needs.
        Raises ConfigError for a number of frames or a size that the strides do not divide.
        """
        _check_shape("video", video, VIDEO_CHANNELS)
        frames, height, width = video.shape[2:]
        LatentGrid.of_video(frames, height, width, self.strides)
        spans = self._spans(encode_spans, frames)
        frames = (frames - 1) // self.strides[0] + 1
        moments = _in_chunks(self.encoder, video.to(self.dtype), spans, frames, draws)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(*_LOGVAR_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Video [B,3,T,H,W], about in [-1,1], for latents [B,C,t,h,w] from `encode`; T = strides[0]*(t-1) + 1."""
        _check_shape("latents", latents, self.config.latent_dim)
        return self.decode_unscaled(latents.to(self.dtype) / self.scale + self.shift)

    def decode_unscaled(self, z: Tensor, draws: Sequence[torch.Generator] | None = None) -> Tensor:
        """Video for latents before shift and scale, such as the mean of `encode_moments`; draws: as there."""
        _check_shape("z", z, self.config.latent_dim)
        z, spans = z.to(self.dtype), self._spans(streamed_spans, z.shape[2])
        frames = (z.shape[2] - 1) * self.strides[0] + 1
        if not self.config.use_spatial_tiling:
            return _in_chunks(self.decoder, z, spans, frames, draws)
        features = _in_chunks(self.decoder.ground, z, spans, z.shape[2], draws)
        stride = self.strides[1]
        size, overlap = self.config.spatial_tile // stride, self.config.spatial_tile_overlap // stride

        def rise(tile: Tensor) -> Tensor:
            return _in_chunks(self.decoder.rise, tile, spans, frames, draws)

        return tiles.decode(rise, features, size, overlap, stride)

    def _spans(self, cut, frames: int) -> list[Span]:
        if not self.config.use_tiling:
            return [Span(0, frames)]
        spans = cut(frames, self.strides[0])
        if self.config.norm_type == "layernorm":  # the statistics of group norm depend on where the original cuts
            spans = without_a_single_frame(spans)
        _LOG.debug("wfvae: %d frames in %d chunks", frames, len(spans))
        return spans


def _in_chunks(
    network: Callable[[Tensor, Chunk], Tensor],
    video: Tensor,
    spans: list[Span],
    frames: int,
    draws: Sequence[torch.Generator] | None,
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


def _check_shape(name: str, x: Tensor, channels: int) -> None:
    if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape:
        raise ValueError(f"{name} has shape {list(x.shape)}, must be [B,{channels},T,H,W] without empty axes")
    if not x.is_floating_point():
        raise ValueError(f"{name} is {x.dtype}, must be floats; uint8 frames become a video by x / 127.5 - 1")
