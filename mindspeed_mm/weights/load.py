"""Loads weights, published or ours, into networks."""

from pathlib import Path

import torch

from mindspeed_mm import families, logs
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.models.denoiser import Denoiser
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.parallel.partition import full_shape, partition_dims
from mindspeed_mm.weights import released, sources

_log = logs.get(__name__)


def load_denoiser(network: Denoiser, source: str | Path, ema: bool = False) -> None:
    """Loads this rank's part of the weights at `source`, in any format of `weights/sources.py`.

    ema: the average instead of the live weights. Reads only the rank's own slices. Every name and shape must fit; the
    text tail of the original's last block is dropped. Inputs that a config adds to published weights begin at 0.
    """
    parallel, dims = network.parallel, partition_dims(network)
    checkpoint = sources.open_checkpoint(source)
    weights = checkpoint.weights(ema, dims.get)
    wanted = {
        name: full_shape(value.shape, dims.get(name), parallel.tensor_size)
        for name, value in released.stored_tensors(network).items()
    }
    family = families.of_config(network.config)
    misfit = released.compare(wanted, weights, set(family.unused(wanted)), family.begins_at_zero)
    if misfit:
        if parallel.is_first:
            _log.error(f"{source}: {misfit.every_name()}")
        raise CheckpointError(f"{source}: does not fit the network: {misfit}. {_explain(weights, network)}")
    share = (parallel.tensor_rank, parallel.tensor_size)
    released.load(network, weights, *share, progress=parallel.is_first, beat=parallel.pulse.beat)
    _begin_at_zero(network, [name for name in wanted if name not in weights], source)
    if misfit.dropped:
        _log.info(f"{source}: left out, their output is never used: {', '.join(misfit.dropped)}")
    _log.info(
        f"loaded the denoiser from {source} ({checkpoint.kind}, {checkpoint.dialect.name if checkpoint.dialect else 'unknown'} names)"
    )


def load_autoencoder(autoencoder: WFVAE, source: str | Path) -> None:
    """Loads a WFVAE file or folder, published or ours. Haar filters may be missing, since they are constants."""
    weights = released.autoencoder_weights(source)
    wanted = {name: tuple(value.shape) for name, value in released.stored_tensors(autoencoder).items()}
    misfit = released.compare(wanted, weights, may_be_missing=families.of_config(autoencoder.config).may_be_missing)
    if misfit:
        _log.error(f"{source}: {misfit.every_name()}")
        raise CheckpointError(
            f"{source}: does not fit the network: {misfit}. By their look, {released.describe_names(weights)}"
        )
    released.load(autoencoder, weights)
    _log.info(f"loaded the autoencoder from {source}")


@torch.no_grad()
def _begin_at_zero(network: Denoiser, names: list[str], source: str | Path) -> None:
    """Sets parameters to 0 that the weights may lack."""
    for name in names:
        network.get_parameter(name).zero_()
    if names and network.parallel.is_first:
        _log.warning(f"{source}: has no {', '.join(names)}: begins at 0, where the network is the one without it")


def _explain(weights, network: Denoiser) -> str:
    """Describes what the weights seem to be."""
    family = families.of_config(network.config)
    differences = family.differences(family.describe(weights, weights.shape), network.config)
    return (
        f"The config is another one: {differences}"
        if differences
        else (f"By their look, {released.describe_names(weights)}")
    )
