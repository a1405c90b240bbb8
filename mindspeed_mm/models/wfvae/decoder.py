"""Decoder of WFVAE (2411.17459, section 3.2): the encoder mirrored, with wavelet energy flowing out of each level."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.wfvae.causal_conv import CausalConv3d, CausalUpsample, channels_last
from mindspeed_mm.models.wfvae.chunks import Chunk
from mindspeed_mm.models.wfvae.layers import (
    VIDEO_CHANNELS,
    WAVELETS,
    Chain,
    FrameAttention,
    FrameConv2d,
    FrameUpsample,
    InverseHaarTransform3D,
    ResidualBlock3D,
    make_norm,
)


class Decoder(nn.Module):
    """Latents -> video."""

    def __init__(self, config: WFVAEConfig):
        super().__init__()
        width, flow = config.base_channels, config.decoder_energy_flow_hidden_size
        block = functools.partial(ResidualBlock3D, norm_type=config.norm_type, dropout=config.dropout)
        blocks = range(config.decoder_num_resblocks)
        inverse_out, inverse_l1 = InverseHaarTransform3D(), WAVELETS[config.l1_upsample_wavelet]()
        inverse_l2 = WAVELETS[config.l2_upsample_wavelet]()
        self.energy_flow_hidden_size = flow

        self.conv_in = CausalConv3d(config.latent_dim, 4 * width)
        self.mid = Chain(
            block(4 * width, 4 * width),
            *([FrameAttention(4 * width, config.norm_type)] if config.use_attention else []),
            block(4 * width, 4 * width + flow),
        )
        self.up2 = _Level(
            *[block(4 * width, 4 * width) for _ in blocks],
            _upsample(config.l2_upsample_block, 4 * width, config.t_interpolation),
            block(4 * width, 4 * width + flow),
        )
        self.up1 = _Level(
            *[block((2 if i else 4) * width, 2 * width) for i in blocks],
            _upsample(config.l1_upsample_block, 2 * width, config.t_interpolation),
            block(2 * width, 2 * width),
        )
        self.layer = Chain(block(2 * width, width), block(width, width))
        self.connect_l1, self.connect_l2 = (
            Chain(
                *[block(flow, flow) for _ in range(config.connect_res_layer_num)],
                FrameConv2d(flow, VIDEO_CHANNELS * inverse.subbands),
            )
            for inverse in (inverse_l1, inverse_l2)
        )
        self.norm_out = make_norm(config.norm_type, width)
        self.conv_out = FrameConv2d(width, VIDEO_CHANNELS * inverse_out.subbands)
        self.inverse_wavelet_transform_out = inverse_out
        self.inverse_wavelet_transform_l1 = inverse_l1
        self.inverse_wavelet_transform_l2 = inverse_l2

    def forward(self, z: Tensor, chunk: Chunk) -> Tensor:
        """z [B,latent_dim,t,h,w] -> video [B,3,T,H,W]."""
        return self.rise(self.ground(z, chunk), chunk)

    def ground(self, z: Tensor, chunk: Chunk) -> Tensor:
        """z [B,latent_dim,t,h,w] -> features [B,D,t,h,w]: the layers at the latents' size, with attention within
        frames.

        They look back in time only, so they need no look-ahead.
        """
        return self.mid(self.conv_in(z, chunk), chunk)

    def rise(self, features: Tensor, chunk: Chunk) -> Tensor:
        """Features [B,D,t,h,w] -> video [B,3,T,H,W]: convolutions with a bounded neighbourhood."""
        h, energy = self._split(channels_last(features))
        # The original passes level 2 to the transform named l1 and level 1 to l2, which fits only if both are 3D.
        low_l1 = self.inverse_wavelet_transform_l2(self.connect_l2(energy, chunk), chunk)

        h, chunk = self.up2(h, chunk)
        h, energy = self._split(h)
        low_l1 = chunk.wait(self.inverse_wavelet_transform_l2, low_l1, h.shape[2])
        bands_l1 = _add_low(self.connect_l1(energy, chunk), low_l1)
        low = self.inverse_wavelet_transform_l1(bands_l1, chunk)

        h, chunk = self.up1(h, chunk)
        h = self.layer(h, chunk)
        low = chunk.wait(self.inverse_wavelet_transform_l1, low, h.shape[2])
        bands = _add_low(self.conv_out(F.silu(self.norm_out(h)), chunk), low)
        return self.inverse_wavelet_transform_out(bands, chunk)

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The convolutional path, and the energy flow that leaves it here."""
        return h[:, : -self.energy_flow_hidden_size], h[:, -self.energy_flow_hidden_size :]


class _Level(nn.Sequential):
    """Residual blocks, an upsampler and one more block. Returns the chunk at the frame rate behind the upsampler."""

    def forward(self, video: Tensor, chunk: Chunk) -> tuple[Tensor, Chunk]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *blocks, upsample, last = self
        for block in blocks:
            video = block(video, chunk)
        video, chunk = upsample(video, chunk)
        return last(video, chunk), chunk


UPSAMPLES = {
    "Upsample": lambda channels, t_interpolation: FrameUpsample(channels),
    "Spatial2xTime2x3DUpsample": CausalUpsample,
}


def _upsample(name: str, channels: int, t_interpolation: str) -> nn.Module:
    return UPSAMPLES[name](channels, t_interpolation)


def _add_low(bands: Tensor, low: Tensor) -> Tensor:
    """Add the video of the coarser level to the low-pass subband, which comes first."""
    return torch.cat((bands[:, :VIDEO_CHANNELS] + low, bands[:, VIDEO_CHANNELS:]), dim=1)
