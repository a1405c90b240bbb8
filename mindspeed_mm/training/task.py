"""The training task: adds noise to a latent, compares the denoiser's velocity with the target, returns the loss."""

import dataclasses

import torch
from torch import Tensor

from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.diffusion import flow, schedule
from mindspeed_mm.families.base import DenoiserConfig
from mindspeed_mm.parallel.seeds import derive, generator
from mindspeed_mm.training.encoders import Encoded, per_sample_noise


@dataclasses.dataclass(frozen=True, slots=True)
class FlowMatchingTask:
    """Flow matching on text-conditioned latents. A sample's place in the data addresses all its randomness."""

    diffusion: DiffusionConfig
    denoiser: DenoiserConfig
    seed: int

    @property
    def unweighted(self) -> DiffusionConfig:
        """The diffusion without loss weights by noise level."""
        return dataclasses.replace(self.diffusion, weighting_scheme="uniform")

    def loss(self, denoiser, sample: Encoded) -> Tensor:
        """Loss of a micro-batch, a scalar. denoiser: called like SparseUMMDiT."""
        z0 = sample.latents
        noise = per_sample_noise(z0, self.seed, "noise", sample.addresses)
        sigma = self._sigma(z0, sample.addresses)
        noisy = flow.interpolate(z0, noise, sigma)
        prediction = denoiser(
            noisy,
            sigma,
            sample.text,
            sample.keep,
            self._rope_offset(z0, sample.addresses),
            dropout_seeds=self._dropout_seeds(z0.device, sample.addresses),
        )
        return flow.loss(prediction, flow.velocity(z0, noise), sigma, self.diffusion, sample.keep)

    def _sigma(self, z0: Tensor, addresses: tuple[tuple[int, int], ...]) -> Tensor:
        grid = LatentGrid(*z0.shape[2:])
        draws = [schedule.draw(self.diffusion, grid, 1, generator(self.seed, "sigma", *place)) for place in addresses]
        return torch.cat(draws).to(z0.device)

    def _dropout_seeds(self, device: torch.device, addresses: tuple[tuple[int, int], ...]) -> Tensor | None:
        """[B] int64, one seed per sample, the same at any layout and after a resume; None without dropout."""
        if self.denoiser.dropout == 0:
            return None
        return torch.tensor([derive(self.seed, "dropout", *place) for place in addresses], device=device)

    def _rope_offset(self, z0: Tensor, addresses: tuple[tuple[int, int], ...]) -> tuple[int, int, int]:
        """With explicit_uniform_rope, a random offset within sample_size_*, one per micro-batch."""
        config = self.denoiser
        if not config.explicit_uniform_rope:
            return 0, 0, 0
        t, h, w = z0.shape[2], z0.shape[3] // config.patch_size, z0.shape[4] // config.patch_size
        limits = (config.sample_size_t - t, config.sample_size_h - h, config.sample_size_w - w)
        if min(limits) < 0:
            raise ValueError(f"a latent of {t}x{h}x{w} tokens is larger than sample_size_t, _h, _w of the predictor")
        draw = generator(self.seed, "rope", *addresses[0])
        return tuple(int(torch.randint(limit + 1, (1,), generator=draw)) for limit in limits)
