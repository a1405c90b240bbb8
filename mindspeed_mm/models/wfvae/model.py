"""WFVAE, the video autoencoder of Open-Sora Plan v1.5 (WF-VAE, 2411.17459), at strides 8x8x8 or 4x8x8.

Its state dict has the keys of a released WFVAE checkpoint. Forward passes leave no state on the modules. Gradients are
recorded as usual in torch: call it under `torch.no_grad()` to encode or decode only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.wfvae import passes
from mindspeed_mm.models.wfvae.decoder import Decoder
from mindspeed_mm.models.wfvae.encoder import Encoder
from mindspeed_mm.models.wfvae.layers import VIDEO_CHANNELS
from mindspeed_mm.schema import check


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
        passes.check_shape("video", video, VIDEO_CHANNELS)
        mean, logvar = passes.moments(self.encoder, self.config, video.to(self.dtype), draws).chunk(2, dim=1)
        return mean, logvar.clamp(*passes.LOGVAR_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Video [B,3,T,H,W], about in [-1,1], for latents [B,C,t,h,w] from `encode`; T = strides[0]*(t-1) + 1."""
        passes.check_shape("latents", latents, self.config.latent_dim)
        return self.decode_unscaled(latents.to(self.dtype) / self.scale + self.shift)

    def decode_unscaled(self, z: Tensor, draws: Sequence[torch.Generator] | None = None) -> Tensor:
        """Video for latents before shift and scale, such as the mean of `encode_moments`; draws: as there."""
        passes.check_shape("z", z, self.config.latent_dim)
        return passes.video_of(self.decoder, self.config, z.to(self.dtype), draws)
