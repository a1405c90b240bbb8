"""The doors for notebooks: build one part, call it. No launcher, no process group, no flags.

A config is the JSON block as a dict (or its dataclass). Weights are fresh unless the block names `from_pretrained`.
"""

import torch

from mindspeed_mm.config.geometry import as_grid
from mindspeed_mm.config.model import AutoencoderConfig, DenoiserConfig, DiffusionConfig
from mindspeed_mm.config.reader import build, check, node_from_python
from mindspeed_mm.diffusion import schedule
from mindspeed_mm.models import build as builders
from mindspeed_mm.parallel.context import ParallelContext


def build_denoiser(config, *, device=None, dtype: str = "fp32", seed: int = 0, parallel: ParallelContext | None = None):
    """The denoiser of a `predictor` block: net(latents, sigma, text, keep) -> velocity (see SparseUMMDiT.forward)."""
    config = _typed(DenoiserConfig, config, "predictor")
    return builders.build_denoiser(config, parallel or ParallelContext.current(), device=device, dtype=dtype, seed=seed)


def build_autoencoder(config, *, device=None, dtype: str | None = None):
    """The autoencoder of an `ae` block: encode, encode_moments, decode (see WFVAE)."""
    return builders.build_autoencoder(_typed(AutoencoderConfig, config, "ae"), device=device, dtype=dtype)


def sigma_grid(config, grid) -> torch.Tensor:
    """num_inference_steps + 1 descending noise levels of a `diffusion` block, ending at 0, for a latent (t, h, w)."""
    return schedule.grid(_typed(DiffusionConfig, config, "diffusion"), as_grid(grid))


def _typed(cls, config, name: str):
    if isinstance(config, cls):
        check(config)
        return config
    return build(cls, node_from_python(config, name))
