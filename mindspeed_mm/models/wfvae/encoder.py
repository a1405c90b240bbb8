"""Encoder of WFVAE (2411.17459, section 3.2): a convolutional path, and the wavelet energy that flows beside it."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.wfvae.causal_conv import CausalConv3d, CausalDownsample, channels_last
from mindspeed_mm.models.wfvae.chunks import Chunk
from mindspeed_mm.models.wfvae.layers import (
    VIDEO_CHANNELS,
    WAVELETS,
    Chain,
    FrameAttention,
    FrameConv2d,
    FrameDownsample,
    HaarTransform3D,
    ResidualBlock2D,
    ResidualBlock3D,
    make_norm,
)

DOWNSAMPLES = {"Downsample": FrameDownsample, "Spatial2xTime2x3DDownsample": CausalDownsample}


class Encoder(nn.Module):
    """Video -> mean and log-variance of its latents, [B, 2*latent_dim, ...]."""

    def __init__(self, config: WFVAEConfig):
        super().__init__()
        width, flow = config.base_channels, config.encoder_energy_flow_hidden_size
        block_2d = functools.partial(ResidualBlock2D, norm_type=config.norm_type, dropout=config.dropout)
        block_3d = functools.partial(ResidualBlock3D, norm_type=config.norm_type, dropout=config.dropout)
        blocks = range(config.encoder_num_resblocks)
        wavelet_in, wavelet_l1 = HaarTransform3D(), WAVELETS[config.l1_downsample_wavelet]()
        wavelet_l2 = WAVELETS[config.l2_downsample_wavelet]()

        self.down1 = Chain(
            FrameConv2d(VIDEO_CHANNELS * wavelet_in.subbands, width),
            *[block_2d(width) for _ in blocks],
            DOWNSAMPLES[config.l1_downsample_block](width),
        )
        self.down2 = Chain(
            FrameConv2d(width + flow, 2 * width),
            *[block_3d(2 * width, 2 * width) for _ in blocks],
            DOWNSAMPLES[config.l2_downsample_block](2 * width),
        )
        self.connect_l1 = FrameConv2d(VIDEO_CHANNELS * wavelet_l1.subbands, flow)
        self.connect_l2 = FrameConv2d(VIDEO_CHANNELS * wavelet_l2.subbands, flow)
        self.mid = Chain(
            block_3d(2 * width + flow, 4 * width),
            *([FrameAttention(4 * width, config.norm_type)] if config.use_attention else []),
            block_3d(4 * width, 4 * width),
        )
        self.norm_out = make_norm(config.norm_type, 4 * width)
        self.conv_out = CausalConv3d(4 * width, 2 * config.latent_dim)
        self.wavelet_transform_in = wavelet_in
        self.wavelet_transform_l1 = wavelet_l1
        self.wavelet_transform_l2 = wavelet_l2

    def forward(self, video: Tensor, chunk: Chunk) -> Tensor:
        """video [B,3,T,H,W] -> [B, 2*latent_dim, t, h, w]; the means come first."""
        bands = self.wavelet_transform_in(video, chunk)
        bands_l1 = self.wavelet_transform_l1(bands[:, :VIDEO_CHANNELS], chunk)  # from the low-low-low subband
        bands_l2 = self.wavelet_transform_l2(bands_l1[:, :VIDEO_CHANNELS], chunk)

        h = self.down1(channels_last(bands), chunk)
        h = self.down2(torch.cat((h, self.connect_l1(bands_l1, chunk)), dim=1), chunk)
        h = self.mid(torch.cat((h, self.connect_l2(bands_l2, chunk)), dim=1), chunk)
        return self.conv_out(F.silu(self.norm_out(h)), chunk)
