"""The frozen networks before the denoiser: turn clips and captions into latents and text features."""

import dataclasses
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from mindspeed_mm.config.image_conditions import ImageConditions
from mindspeed_mm.families.base import Grid
from mindspeed_mm.models import image_conditions
from mindspeed_mm.models.denoiser import Conditions
from mindspeed_mm.models.text.encoders import TextEncoders
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.parallel.seeds import derive, generator
from mindspeed_mm.types import Batch, ImageFeatures, Posterior, Tensors, TextFeatures, sent


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded(Tensors):
    """A micro-batch as the denoiser takes it: z0 [B,C,T,H,W] fp32, conditions, keep [B,T,H,W] bool.

    `keep`, and that of the text, are on the host: which masks are needed is decided there, without waiting for the device.
    """

    latents: Tensor
    conditions: Conditions
    keep: Tensor
    addresses: tuple[tuple[int, int], ...]  # (epoch, place in the list) per sample; addresses its random numbers
    paths: tuple[str, ...]


class FrozenEncoders:
    """WFVAE, T5 and CLIP on the device, without gradients; stored features replace the encoders' outputs."""

    def __init__(
        self,
        autoencoder: WFVAE,
        text: TextEncoders | None,
        device: torch.device,
        seed: int,
        images: ImageConditions | None = None,
    ):
        """autoencoder: with stored posteriors only its shift and scale are used, so its weights may be on the meta
        device. text: None with stored text features. images: ratios of what the denoiser is shown; None: nothing.
        """
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.text = text
        self.device = device
        self.seed = seed
        self.images = images

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Encoded:
        """Encodes a micro-batch and samples the posterior with noise seeded per sample."""
        keep, text_keep = batch.keep, batch.text.keep
        batch = dataclasses.replace(batch.to(self.device), keep=keep)
        posterior = self.posterior(batch)
        noise = per_sample_noise(posterior.mean, self.seed, "posterior", batch.addresses)
        latents = self.autoencoder.latents(posterior.mean, posterior.logvar, noise).float()
        text = dataclasses.replace(self._features(batch), keep=text_keep)
        conditions = Conditions(text, self._image(batch, posterior))
        return Encoded(latents, conditions, keep, batch.addresses, batch.paths)

    def _features(self, batch: Batch) -> TextFeatures:
        """Text features of a batch, on the device."""
        if isinstance(batch.text, TextFeatures):
            return batch.text
        assert self.text is not None, "captions are tokens only where there are text encoders"
        return self.text(batch.text, batch.pooled_text)

    def _image(self, batch: Batch, posterior: Posterior) -> ImageFeatures | None:
        """What the denoiser is shown of a batch's clips; a sample's address draws it."""
        if self.images is None:
            return None
        encoded = posterior.image
        if encoded is None:
            draws = [_draws(self.seed, "image condition", *address) for address in batch.addresses]
            encoded = self.known(batch, draws)
        alone = [self.images.shows_text_alone(_draws(self.seed, "text alone", *place)) for place in batch.addresses]
        return image_conditions.finish(self.autoencoder, encoded, ~torch.tensor(alone))

    @torch.no_grad()
    def known(self, batch: Batch, draws: Sequence[random.Random]) -> ImageFeatures:
        """Encodes what each generator of `draws` leaves of a clip; as it is stored, before shift and scale."""
        assert self.images is not None, "only runs with image conditions ask for them"
        pixels = torch.zeros(batch.clips.shape[0], *batch.clips.shape[2:])
        strides = self.autoencoder.strides
        for one, keep, rng in zip(pixels, batch.keep, draws, strict=True):
            frames, height, width = extent = _real_extent(keep, strides)
            known = self.images.draw(rng, extent, strides[0])
            one[:frames, :height, :width] = image_conditions.pixel_mask(known, extent)
        return image_conditions.encode_known(self.autoencoder, batch.clips, sent(pixels, batch.clips.device))

    @torch.no_grad()
    def posterior(self, batch: Batch) -> Posterior:
        """Posterior of a batch's clips, on the device."""
        if isinstance(batch.video, Posterior):
            return batch.video
        return Posterior(*self.autoencoder.encode_moments(batch.video))


def _draws(seed: int, purpose: str, *address: int) -> random.Random:
    return random.Random(derive(seed, purpose, *address))


def _real_extent(keep: Tensor, strides: Grid) -> Grid:
    """Pixels (frames, height, width) of a clip without its padding. keep: [t,h,w]."""
    t, h, w = (int(keep.any(axes).sum()) for axes in ((1, 2), (0, 2), (0, 1)))
    return (t - 1) * strides[0] + 1, h * strides[1], w * strides[2]


def per_sample_noise(like: Tensor, seed: int, purpose: str, addresses: tuple[tuple[int, int], ...]) -> Tensor:
    """Standard normal noise [B,...] from one generator per sample, the same for any batch and layout."""
    draws = [torch.randn(like.shape[1:], generator=generator(seed, purpose, *address)) for address in addresses]
    return sent(torch.stack(draws), like.device, like.dtype)
