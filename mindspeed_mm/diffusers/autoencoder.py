"""WFVAE as a diffusers autoencoder: encoder and decoder of `models/wfvae/` with the published names."""

import dataclasses
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from mindspeed_mm.diffusers.settings import checked, takes
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.wfvae import passes
from mindspeed_mm.models.wfvae.decoder import Decoder
from mindspeed_mm.models.wfvae.encoder import Encoder
from mindspeed_mm.models.wfvae.layers import VIDEO_CHANNELS


class AutoencoderKLWFVAE(ModelMixin, AutoencoderMixin, ConfigMixin):
    """The causal video autoencoder of Open-Sora Plan v1.5. Its settings are the fields of `WFVAEConfig`.

    Videos are [B,3,T,H,W] in [-1,1] with T = n*stride + 1. Latents are those of the posterior: the pipeline applies
    `config.shift` and `config.scale`, latent = (z - shift) * scale. With `use_tiling` of the config, clips pass in
    temporal chunks with the same result (`config.use_tiling`); `enable_tiling` adds spatial tiles in decoding.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["ResidualBlock2D", "ResidualBlock3D", "FrameAttention"]

    @register_to_config
    @takes(WFVAEConfig, without=("model_id", "dtype", "from_pretrained"))
    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = checked(WFVAEConfig, settings)
        self.encoder = Encoder(self.settings)
        self.decoder = Decoder(self.settings)
        self.use_slicing = False  # one clip of a batch at a time
        self.use_tiling = self.settings.use_spatial_tiling

    def enable_tiling(self, tile_size: int | None = None, overlap: int | None = None) -> None:
        """Decodes large frames in overlapping tiles; memory then depends on the tile.

        tile_size, overlap: height and width of a tile and least overlap of neighbours, in pixels; default: the
        config's. Raises ConfigError where tiles would be far off, as with group norm.
        """
        given = {"spatial_tile": tile_size, "spatial_tile_overlap": overlap}
        changed = {name: value for name, value in given.items() if value is not None}
        values = {**dataclasses.asdict(self.settings), **changed, "use_spatial_tiling": True}
        self.settings = checked(WFVAEConfig, values)
        self.use_tiling = True

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Posterior of a video."""
        passes.check_shape("x", x, VIDEO_CHANNELS)
        parts = x.split(1) if self.use_slicing else [x]
        moments = torch.cat([passes.moments(self.encoder, self.settings, part) for part in parts])
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Video of the posterior's latents, before shift and scale."""
        passes.check_shape("z", z, self.settings.latent_dim)
        settings = dataclasses.replace(self.settings, use_spatial_tiling=self.use_tiling)
        parts = z.split(1) if self.use_slicing else [z]
        video = torch.cat([passes.video_of(self.decoder, settings, part) for part in parts])
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encodes and decodes. sample_posterior: draws the latents by `generator`, else takes the mode."""
        (posterior,) = self.encode(sample, return_dict=False)
        z = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)
