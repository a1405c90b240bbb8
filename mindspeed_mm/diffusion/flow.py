"""The path between data and noise, and the loss on its velocity (rectified flow, 2209.03003)."""

import torch
from torch import Tensor

from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.config.noise import WEIGHTINGS
from mindspeed_mm.types import sent


def interpolate(z0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Point on the straight path from data to noise: sigma noise + (1 - sigma) z0.

    z0, noise: [B,C,T,H,W]; sigma: [B] in [0, 1], 1 is pure noise. Computed in fp32, returned in z0's dtype.
    Rectified flow (2209.03003, eq. 1), noise at sigma=1 as in SD3 (2403.03206, section 3).
    """
    if noise.shape != z0.shape:
        raise ValueError(f"noise {list(noise.shape)} and z0 {list(z0.shape)} must have one shape")
    weight = _per_sample(sigma.float(), z0)
    return (weight * noise.float() + (1.0 - weight) * z0.float()).to(z0.dtype)


def velocity(z0: Tensor, noise: Tensor) -> Tensor:
    """Target of the denoiser, the derivative of the path in sigma: noise - z0, fp32."""
    return noise.float() - z0.float()


def loss(
    prediction: Tensor, target: Tensor, sigma: Tensor, config: DiffusionConfig, keep: Tensor | None = None
) -> Tensor:
    """Weighted mean squared error of a velocity, a scalar fp32 tensor.

    prediction, target: [B,C,T,H,W]; sigma: [B]; keep: [B,T,H,W] bool, the mean is over its True positions (None: all).
    """
    error = _per_sample(loss_weight(sigma.float(), config), target) * (prediction.float() - target.float()).square()
    if keep is None:
        return error.mean()
    if keep.dtype != torch.bool:
        raise ValueError(f"keep must be torch.bool, found {keep.dtype}: a position counts or does not")
    weight = sent(keep, error.device)[:, None].expand_as(error)
    return (error * weight).sum() / weight.sum().clamp_min(1)


def loss_weight(sigma: Tensor, config: DiffusionConfig) -> Tensor:
    """Weight of a sample's loss by its noise level (2403.03206, appendix); 1 for schemes that sample levels instead."""
    return WEIGHTINGS[config.weighting_scheme].weight(sigma)


def _per_sample(value: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B,1,1,1,1]."""
    return value.reshape(-1, *[1] * (like.ndim - 1))
