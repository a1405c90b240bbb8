"""The training task: adds noise to a latent, compares the denoiser's velocity with the target, returns the loss."""

import dataclasses

import torch
from torch import Tensor

from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.diffusion import flow, schedule
from mindspeed_mm.families.base import DenoiserConfig
from mindspeed_mm.parallel.seeds import SampleDraws, generator
from mindspeed_mm.training.encoders import Encoded, per_sample_noise
from mindspeed_mm.types import sent


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

    @property
    def weighting(self) -> DiffusionConfig:
        """The diffusion whose loss weights training takes."""
        return self.diffusion

    @property
    def frozen_passes(self) -> int:
        """Forward passes of frozen denoisers for each sample of a step."""
        return 0

    def loss(self, denoiser, sample: Encoded) -> Tensor:
        """Loss of a micro-batch, a scalar. denoiser: called as a `Denoiser`."""
        z0 = sample.latents
        noise = per_sample_noise(z0, self.seed, "noise", sample.addresses)
        sigma = self._sigma(z0, sample.addresses)
        draws = SampleDraws(self.seed, sample.addresses)
        return self.loss_at(denoiser, sample, sigma, noise, self.weighting, draws)

    def loss_at(
        self,
        denoiser,
        sample: Encoded,
        sigma: Tensor,
        noise: Tensor,
        diffusion: DiffusionConfig,
        draws: SampleDraws | None = None,
    ) -> Tensor:
        """Loss at noise levels [B] with noise [B,C,T,H,W], weighted as `diffusion` says. draws: see `Denoiser.forward`."""
        noisy = flow.interpolate(sample.latents, noise, sigma)
        target = self.target(sample, noise, noisy, sigma)
        prediction = denoiser(noisy, sigma, sample.conditions, sample.keep, draws=draws)
        return flow.loss(prediction, target, sigma, diffusion, sample.keep)

    def target(self, sample: Encoded, noise: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Velocity [B,C,T,H,W] that the denoiser learns at `noisy` and noise levels `sigma` [B]."""
        return flow.velocity(sample.latents, noise)

    def level(self, sigma: Tensor, grid: LatentGrid) -> Tensor:
        """The noise levels [B] nearest to `sigma` [B] that the task trains, for latents of this extent."""
        return sigma

    def _sigma(self, z0: Tensor, addresses: tuple[tuple[int, int], ...]) -> Tensor:
        grid = LatentGrid(*z0.shape[2:])
        draws = [schedule.draw(self.diffusion, grid, 1, generator(self.seed, "sigma", *place)) for place in addresses]
        return sent(torch.cat(draws), z0.device)
