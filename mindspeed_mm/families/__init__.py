"""Registry of the networks in this project, as facts without tensors: one file and one row each.

To add a network, add a file here, a folder in `models/`, a row below and one in `models/build.py`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from mindspeed_mm.families import sparse_ummdit, wfvae
from mindspeed_mm.families.base import AutoencoderConfig, DenoiserConfig, DenoiserFamily, Dialect, Family
from mindspeed_mm.schema import Node, Notes, build, did_you_mean, read_json

DENOISERS: dict[str, DenoiserFamily] = {family.model_id: family for family in (sparse_ummdit.FAMILY,)}
AUTOENCODERS: dict[str, Family] = {family.model_id: family for family in (wfvae.FAMILY,)}


def known() -> tuple[Family, ...]:
    """Every family, denoisers first."""
    return (*DENOISERS.values(), *AUTOENCODERS.values())


def of_names(names: Iterable[str]) -> tuple[Family, Dialect] | None:
    """The family and dialect of a checkpoint's names; None if no family knows them."""
    names = list(names)
    for family in known():
        dialect = family.speaks(names)
        if dialect is not None:
            return family, dialect
    return None


def of_config(config: object) -> Family:
    """The family of a config object."""
    return next(family for family in known() if isinstance(config, family.config))


def of_denoiser(config: DenoiserConfig) -> DenoiserFamily:
    """The family of a denoiser's config."""
    return DENOISERS[config.model_id]


def needs_pooled_text(config: DenoiserConfig) -> bool:
    """True if a denoiser takes the features of a second text encoder."""
    return "text_encoder_2" in of_denoiser(config).text_widths(config)


def takes_images(config: DenoiserConfig) -> bool:
    """True if a denoiser has inputs for an image condition."""
    return of_denoiser(config).image_mask_channels(config) > 0


def read_denoiser(node: Node, notes: Notes | None = None) -> DenoiserConfig:
    """Config of a `predictor` block in any published spelling; its `model_id` selects the family."""
    return _read(DENOISERS, node, notes)


def read_autoencoder(node: Node, notes: Notes | None = None) -> AutoencoderConfig:
    """Config of an `ae` block in any published spelling; its `model_id` selects the family."""
    return _read(AUTOENCODERS, node, notes)


def read_file(path: str | Path, block: str = "predictor") -> DenoiserConfig | AutoencoderConfig:
    """Config of the denoiser ("predictor") or the autoencoder ("ae") in a model or inference JSON, or in a single
    block.
    """
    node = read_json(path)
    if isinstance(node.value, dict) and block in node.value:
        node = node.value[block]
    return {"predictor": read_denoiser, "ae": read_autoencoder}[block](node)


def _read(table: Mapping[str, Family], node: Node, notes: Notes | None):
    family = next(iter(table.values()))  # a block without a model_id belongs to the first network
    if isinstance(node.value, dict) and "model_id" in node.value:
        named = node.value["model_id"]
        if not isinstance(named.value, str) or named.value not in table:
            close = did_you_mean(named.value, table) if isinstance(named.value, str) else ""
            raise named.error(f"{named.plain()!r} is not one of {', '.join(map(repr, table))}{close}")
        family = table[named.value]
    return build(family.config, family.published(node), notes)
