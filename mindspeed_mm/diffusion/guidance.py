"""Classifier-free guidance."""

import torch
from torch import Tensor

from mindspeed_mm.config.guidance_rules import RULES
from mindspeed_mm.config.model import DiffusionConfig


def guided(
    config: DiffusionConfig, without: Tensor, with_prompt: Tensor, latents: Tensor, sigma: float | Tensor
) -> Tensor:
    """The velocity that guidance makes of both halves [B,...], by the config's rule, scale and rescaling.

    sigma: noise level of the latents [B,...], a number or [B].
    """
    if isinstance(sigma, Tensor):
        sigma = sigma.reshape(-1, *[1] * (latents.ndim - 1))
    base = RULES[config.guidance_rule](without, with_prompt, latents, sigma)
    found = combine(base, with_prompt, config.guidance_scale, config.guidance_rescale)
    if not isinstance(sigma, Tensor):
        return found if config.guides_at(sigma) else with_prompt
    low, high = config.guidance_interval
    return torch.where((low <= sigma) & (sigma <= high), found, with_prompt)


def combine(unconditional: Tensor, conditional: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Guided prediction u + scale (c - u) (2207.12598); `rescale` in [0, 1] moves its spread back towards c's.

    Both: [B,...]. The rescaling (2305.08891, section 3.4) multiplies by std(c) / std(guided), per sample.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0.0:
        return guided
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return rescale * (guided * ratio) + (1 - rescale) * guided
