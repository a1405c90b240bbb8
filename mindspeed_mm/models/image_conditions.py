"""Known pixels of a video as the denoiser takes them: latents of the video without its unknown pixels, and a mask.

As in Open-Sora Plan's inpainting model (report v1.2): unknown pixels are grey, the autoencoder encodes the rest, and a
mask on the latent grid says which pixels were known. The mask keeps each frame of a latent apart, as a channel, so that
the network knows which of the frames it was shown. Latents that cover no known pixel are 0, as for text-to-video.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mindspeed_mm.config.image_conditions import Known
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.types import ImageFeatures


def pixel_mask(known: Known, extent: tuple[int, int, int]) -> Tensor:
    """[T,H,W] fp32: 1 at known pixels."""
    mask = torch.zeros(extent)
    mask[list(known.frames)] = 1.0
    if known.hidden is not None:
        top, left, height, width = known.hidden
        mask[:, top : top + height, left : left + width] = 0.0
    return mask


def latent_mask(pixels: Tensor, strides: tuple[int, int, int]) -> Tensor:
    """[B,T,H,W] -> [B,M,t,h,w], M the frames of a latent: the known share of each frame's pixels in each latent.

    The first frame has its own latent and fills all M channels.
    """
    stride_t, stride_h, stride_w = strides
    shares = F.avg_pool2d(pixels, (stride_h, stride_w))  # frames as channels
    first = shares[:, :1].expand(-1, stride_t, -1, -1)
    return torch.cat((first, shares[:, 1:]), dim=1).unflatten(1, (-1, stride_t)).transpose(1, 2).contiguous()


@torch.no_grad()
def encode_known(autoencoder: WFVAE, video: Tensor, pixels: Tensor) -> ImageFeatures:
    """Encodes the known pixels of videos. Latents are means of the posterior, before shift and scale, as it is stored.

    video: [B,3,T,H,W] in [-1,1]. pixels: [B,T,H,W], 1 at known pixels.
    """
    pixels = pixels.to(video)
    mean, _ = autoencoder.encode_moments(video * pixels[:, None])
    return ImageFeatures(mean, latent_mask(pixels, autoencoder.strides))


def finish(autoencoder: WFVAE, encoded: ImageFeatures, shown: Tensor | None = None) -> ImageFeatures:
    """What `encode_known` or the store gave, as the denoiser takes it, fp32: shifted, scaled, 0 where nothing is known.

    shown: [B] bool, False at samples that are to show nothing; None: all show what is known.
    """
    mask = encoded.mask.float()
    if shown is not None:
        mask = mask * shown.to(mask.device).view(-1, 1, 1, 1, 1)
    return as_seen((encoded.latents - autoencoder.shift) * autoencoder.scale, mask)


def as_seen(latents: Tensor, mask: Tensor) -> ImageFeatures:
    """Latents of known pixels, shifted and scaled, as the denoiser takes them: fp32, 0 where nothing is known."""
    mask = mask.float()
    return ImageFeatures(torch.where(mask.amax(1, keepdim=True) > 0, latents.float(), 0.0), mask)


def on_straight_path(velocity: Tensor, latents: Tensor, sigma: float, known: ImageFeatures) -> Tensor:
    """The velocity with known latents on their straight path from the noise, which ends at them.

    Latents are known whose frames are known wholly: an encoder that looks back alone gives them the same values as for
    the whole video. The denoiser was trained to see them on this path.
    """
    whole = known.mask.amin((1, 3, 4), keepdim=True) == 1
    if sigma == 0:
        return velocity
    exact = ((latents - known.latents) / sigma).to(velocity.dtype)
    return torch.where(whole, exact, velocity)
