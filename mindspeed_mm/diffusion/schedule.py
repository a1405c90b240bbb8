"""Noise levels: drawn for training, in descending order for sampling."""

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.config.noise import WEIGHTINGS
from mindspeed_mm.errors import ConfigError

# Dynamic shifting: log(shift) is linear in the number of image tokens, 0.5 at 256 and 1.15 at 4096 (2403.03206, section 5.3.2).
_TOKENS_LOW, _TOKENS_HIGH = 256, 4096
_LOG_SHIFT_LOW, _LOG_SHIFT_HIGH = 0.5, 1.15


def draw(config: DiffusionConfig, grid: LatentGrid, batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels [B] fp32 for a training batch, on the CPU: the same on every device for one generator."""
    sigma = WEIGHTINGS[config.weighting_scheme].draw(config, _Draws(batch, generator))
    return shifted(sigma.clamp_min(config.sigma_eps), shift_of(config, grid), config.sigma_eps)


@dataclasses.dataclass(frozen=True, slots=True)
class _Draws:
    """Random numbers [batch] fp32 of a generator (`config.noise.Draws`)."""

    batch: int
    generator: torch.Generator

    def normal(self, mean: float, std: float) -> Tensor:
        return torch.normal(mean, std, (self.batch,), generator=self.generator)

    def uniform(self) -> Tensor:
        return torch.rand((self.batch,), generator=self.generator)


def grid(config: DiffusionConfig, latent: LatentGrid) -> Tensor:
    """num_inference_steps + 1 descending noise levels, fp32, from 1 to 0 (at least sigma_eps), for steps between them.

    The linear-quadratic schedule is not shifted, and a static shift below 1 does nothing here, both as in the original.
    """
    steps = config.num_inference_steps
    if steps is None:
        raise ConfigError("diffusion.num_inference_steps is missing; sampling needs it, for example 50")
    if config.use_linear_quadratic_schedule:
        return torch.tensor(linear_quadratic(steps), dtype=torch.float32)
    sigma = torch.from_numpy(np.linspace(1.0, 0.0, steps + 1))  # fp64 until the end
    shift = shift_of(config, latent) if config.use_dynamic_shifting else config.sampling_shift
    if not (shift > 1 or config.use_dynamic_shifting):
        shift = 1.0
    return shifted(sigma, shift, config.sigma_eps).to(torch.float32)


def shift_of(config: DiffusionConfig, latent: LatentGrid) -> float:
    """Shift for a latent's extent: the config's, or with dynamic shifting one that grows with height x width."""
    return dynamic_shift(latent) if config.use_dynamic_shifting else config.shift


def dynamic_shift(latent: LatentGrid) -> float:
    """Shift that grows with a latent's height x width."""
    slope = (_LOG_SHIFT_HIGH - _LOG_SHIFT_LOW) / (_TOKENS_HIGH - _TOKENS_LOW)
    tokens = latent.height * latent.width // 4  # 2x2 patches; frames do not count, as in the original
    return math.exp(_LOG_SHIFT_LOW + slope * (tokens - _TOKENS_LOW))


def shifted(sigma: Tensor, shift: float, sigma_eps: float = 0.0) -> Tensor:
    """More noise for larger latents: s sigma / (1 + (s - 1) sigma) (2403.03206, eq. 23); fixes 0 and 1."""
    return (shift * sigma / (1 + (shift - 1) * sigma)).clamp_min(sigma_eps)


def linear_quadratic(steps: int) -> list[float]:
    """Noise levels of an even number of steps, and 0. Half of the steps are as small as those of a much finer linear
    schedule, the others grow quadratically.

    After Movie Gen (2410.13720, section 3.4.2). The quadratic a i^2 + b i + c continues the linear part with its value
    and slope at i = half, and reaches 1 at i = steps.
    """
    fine = min(max(10 * steps, 250), 1000) // 2 * 2
    half = steps // 2
    slope = 1 / fine
    growth = 1 - half * slope - half * slope  # remainder at the end if the first half's slope went on
    curve = growth / half**2
    noise = [i * slope + (curve * (i - half) ** 2 if i >= half else 0.0) for i in range(steps)]
    return [1.0 - value for value in noise] + [0.0]
