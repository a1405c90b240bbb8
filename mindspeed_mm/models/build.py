"""From a config to a network. Rows are plain dicts, so that a model is found by searching for its name."""

import torch

from mindspeed_mm.families.base import AutoencoderConfig, DenoiserConfig
from mindspeed_mm.models.sparse_ummdit.model import SparseUMMDiT
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.parallel import partition
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.types import TORCH_DTYPES

DENOISERS = {"SparseUMMDiT": SparseUMMDiT}
AUTOENCODERS = {"wfvae": WFVAE}


def build_denoiser(
    config: DenoiserConfig,
    parallel: ParallelContext,
    *,
    device: torch.device | str | None = None,
    dtype: str = "fp32",
    seed: int | None = 0,
    recompute_blocks: int = 0,
    recompute_feed_forwards: int = 0,
) -> SparseUMMDiT:
    """This rank's part of the denoiser. With `seed` its weights are fresh; with None they are empty, to be loaded.

    device: where the weights live; None is torch's current default device, so `with torch.device("meta")` works.
    """
    home = torch.get_default_device() if device is None else torch.device(device)
    with torch.device("meta"):  # no weight exists twice, and none in fp32 that will be bf16
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
    """The autoencoder with fresh weights, in eval mode. dtype: default the config's."""
    home = torch.get_default_device() if device is None else torch.device(device)
    with home:
        network = AUTOENCODERS[config.model_id](config)
    return network.to(TORCH_DTYPES[dtype or config.dtype]).eval()
