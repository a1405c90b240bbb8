"""The frozen networks before the denoiser: turn clips and captions into latents and text features."""

import dataclasses

import torch
from torch import Tensor

from mindspeed_mm.models.denoiser import Conditions
from mindspeed_mm.models.text.encoders import TextEncoders
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.parallel.seeds import generator
from mindspeed_mm.types import Batch, Posterior, Tensors, TextFeatures


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded(Tensors):
    """A micro-batch as the denoiser takes it: z0 [B,C,T,H,W] fp32, conditions, keep [B,T,H,W] bool."""

    latents: Tensor
    conditions: Conditions
    keep: Tensor
    addresses: tuple[tuple[int, int], ...]  # (epoch, place in the list) per sample; addresses its random numbers
    paths: tuple[str, ...]


class FrozenEncoders:
    """WFVAE, T5 and CLIP on the device, without gradients; stored features replace the encoders' outputs."""

    def __init__(self, autoencoder: WFVAE, text: TextEncoders | None, device: torch.device, seed: int):
        """autoencoder: with stored posteriors only its shift and scale are used, so its weights may be on the meta
        device. text: None with stored text features.
        """
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.text = text
        self.device = device
        self.seed = seed

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Encoded:
        """Encodes a micro-batch and samples the posterior with noise seeded per sample."""
        batch = batch.to(self.device)
        posterior = self.posterior(batch)
        noise = per_sample_noise(posterior.mean, self.seed, "posterior", batch.addresses)
        latents = self.autoencoder.latents(posterior.mean, posterior.logvar, noise).float()
        return Encoded(latents, Conditions(self._features(batch)), batch.keep, batch.addresses, batch.paths)

    def _features(self, batch: Batch) -> TextFeatures:
        """Text features of a batch, on the device."""
        if isinstance(batch.text, TextFeatures):
            return batch.text
        assert self.text is not None, "captions are tokens only where there are text encoders"
        return self.text(batch.text, batch.pooled_text)

    @torch.no_grad()
    def posterior(self, batch: Batch) -> Posterior:
        """Posterior of a batch's clips, on the device."""
        if isinstance(batch.video, Posterior):
            return batch.video
        return Posterior(*self.autoencoder.encode_moments(batch.video))


def per_sample_noise(like: Tensor, seed: int, purpose: str, addresses: tuple[tuple[int, int], ...]) -> Tensor:
    """Standard normal noise [B,...] from one generator per sample, the same for any batch and layout."""
    draws = [torch.randn(like.shape[1:], generator=generator(seed, purpose, *address)) for address in addresses]
    return torch.stack(draws).to(device=like.device, dtype=like.dtype)
