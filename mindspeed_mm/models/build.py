"""Builds networks from configs. The tables are plain dicts, so that a search for a model's name finds it."""

from collections.abc import Callable
from typing import Any

import torch

from mindspeed_mm.families.base import AutoencoderConfig, DenoiserConfig
from mindspeed_mm.models.denoiser import Denoiser
from mindspeed_mm.models.sparse_ummdit.model import SparseUMMDiT
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.parallel import partition
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.types import TORCH_DTYPES

DENOISERS: dict[str, type[Denoiser]] = {"SparseUMMDiT": SparseUMMDiT}
AUTOENCODERS: dict[str, Callable[[Any], WFVAE]] = {"wfvae": WFVAE}


def build_denoiser(
    config: DenoiserConfig,
    parallel: ParallelContext,
    *,
    device: torch.device | str | None = None,
    dtype: str = "fp32",
    seed: int | None = 0,
    recompute_blocks: int = 0,
    recompute_feed_forwards: int = 0,
) -> Denoiser:
    """Builds this rank's part of the denoiser. With `seed` its weights are fresh; with None they are uninitialised, to
    be loaded.

    device: device of the weights; None is torch's current default, so `with torch.device("meta")` works.
    """
    home = torch.get_default_device() if device is None else torch.device(device)
    with torch.device("meta"):  # so that no weight exists twice, and none in fp32 that will be bf16
        network = DENOISERS[config.model_id](
            config, parallel, recompute_blocks=recompute_blocks, recompute_feed_forwards=recompute_feed_forwards
        )
    network = network.to(TORCH_DTYPES[dtype])
    if home.type != "meta":
        network = network.to_empty(device=home)
        partition.mark(network, network.partial_gradients())
        if seed is not None:
            network.initialize(seed)
    return network


def build_autoencoder(
    config: AutoencoderConfig, *, device: torch.device | str | None = None, dtype: str | None = None
) -> WFVAE:
    """Builds the autoencoder with fresh weights, in eval mode. dtype: default the config's."""
    home = torch.get_default_device() if device is None else torch.device(device)
    with home:
        network = AUTOENCODERS[config.model_id](config)
    return network.to(TORCH_DTYPES[dtype or config.dtype]).eval()
