"""The networks that this project knows, as facts without tensors: one file and one row each.

Adding a network: a file here, a folder in `models/`, a row below and one in `models/build.py`.
"""

from collections.abc import Iterable

from mindspeed_mm.families import sparse_ummdit, wfvae
from mindspeed_mm.families.base import Dialect, Family

DENOISERS = {family.model_id: family for family in (sparse_ummdit.FAMILY,)}
AUTOENCODERS = {family.model_id: family for family in (wfvae.FAMILY,)}


def known() -> tuple[Family, ...]:
    """Every family, denoisers first."""
    return (*DENOISERS.values(), *AUTOENCODERS.values())


def of_names(names: Iterable[str]) -> tuple[Family, Dialect] | None:
    """The family and dialect that a checkpoint's names are of; None if no family knows them."""
    names = list(names)
    for family in known():
        dialect = family.speaks(names)
        if dialect is not None:
            return family, dialect
    return None


def of_config(config: object) -> Family:
    """The family of a config object."""
    return next(family for family in known() if isinstance(config, family.config))
