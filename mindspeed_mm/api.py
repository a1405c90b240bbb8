"""Functions for notebooks: build one part and call it, without launcher, process group or flags.

A config is the JSON block as a dict, its dataclass, or a folder with config and weights. Weights are fresh unless the
block names `from_pretrained`; on the meta device none are loaded.
"""

from pathlib import Path

import torch

from mindspeed_mm import families, weights
from mindspeed_mm.config.geometry import as_grid
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.data.decode import images, readers
from mindspeed_mm.diffusion import schedule
from mindspeed_mm.models import build as builders
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.schema import build, check, node_from_python
from mindspeed_mm.weights import folder


def build_denoiser(config, *, device=None, dtype: str = "fp32", seed: int = 0, parallel: ParallelContext | None = None):
    """The denoiser of a `predictor` block, or of a folder with config.json and weights.

    net(latents, sigma, text, keep) -> velocity (see `Denoiser.forward`).
    """
    if isinstance(config, (str, Path)):
        config = folder.read_denoiser(config)
    config = _typed(config, "predictor", families.DENOISERS, families.read_denoiser)
    source = config.from_pretrained
    fresh = None if source else seed
    network = builders.build_denoiser(
        config, parallel or ParallelContext.current(), device=device, dtype=dtype, seed=fresh
    )
    if source and network.device.type != "meta":
        weights.load_denoiser(network, source)
    return network


def build_autoencoder(config, *, device=None, dtype: str | None = None):
    """The autoencoder of an `ae` block, or of a folder with both: encode, encode_moments, decode (see WFVAE)."""
    if isinstance(config, (str, Path)):
        config = folder.read_autoencoder(config)
    config = _typed(config, "ae", families.AUTOENCODERS, families.read_autoencoder)
    autoencoder = builders.build_autoencoder(config, device=device, dtype=dtype)
    if config.from_pretrained and not autoencoder.shift.is_meta:
        weights.load_autoencoder(autoencoder, config.from_pretrained)
    return autoencoder


def read_clip(path, indices, *, fps: float | None = None):
    """Frames of a video as training sees them before its transforms, uint8 [T,H,W,3].

    They are shown frames: turned, square pixels, BT.709, one field, on white. indices: any order, from 0. fps: the
    rate at which they count; in files of variable rate, frame i is the one shown i / fps seconds after the first.
    Raises DataError for a bad file.
    """
    return readers.read_clip(readers.build_reader("decoder"), str(path), [int(index) for index in indices], fps)


def read_image(path):
    """An image as training sees it before its transforms, uint8 [H,W,3], turned, on white. Raises DataError for a bad
    file.
    """
    return images.read_image(str(path))[0]


def sigma_grid(config, grid) -> torch.Tensor:
    """num_inference_steps + 1 descending noise levels of a `diffusion` block, ending at 0, for a latent (t, h, w)."""
    if isinstance(config, DiffusionConfig):
        check(config)
    else:
        config = build(DiffusionConfig, node_from_python(config, "diffusion"))
    return schedule.grid(config, as_grid(grid))


def _typed(config, name: str, table, read):
    """The typed config of a network in the table, from its dataclass or from the block as a dict."""
    if isinstance(config, tuple(family.config for family in table.values())):
        check(config)
        return config
    return read(node_from_python(config, name))
