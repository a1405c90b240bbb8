"""The frozen base of an adapter's run without tensors: which linears are held in fewer bits, and how many bytes they take.

Blocks of a row share a scale (`ops/packed.py`). Blocks follow from the config alone, and a split over TP never cuts one:
so every layout trains beside the same numbers.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.adapters import linears_of
from mindspeed_mm.families.base import Parameter

# Name -> bits of a number. nf4 has the 16 levels of QLoRA.
FORMS = {"int8": 8, "nf4": 4}
_KINDS = ("attention", "feed_forward", "modulation")  # of linears; the others, 3 % of v1.5, keep their precision
_BLOCK, _LEAST = 64, 8  # numbers of a block: most, as in QLoRA (2305.14314), and least
_RANKS = 8  # TP ranks for which blocks of split rows stay whole
_SCALE = 2  # bytes of a block's scale, bf16


@dataclasses.dataclass(frozen=True, slots=True)
class Packing:
    """How a linear's weight is held. form: one of FORMS. block: adjacent numbers of a row with one scale."""

    form: str
    block: int

    def bytes_of(self, numbers: int) -> int:
        """Of a weight, or a TP rank's part of one."""
        return numbers * FORMS[self.form] // 8 + numbers // self.block * _SCALE


def packings(parameters: Mapping[str, Parameter], form: str | None) -> dict[str, Packing]:
    """The packing of each linear that is held in fewer bits. parameters: all of the network. form: None packs none."""
    if form is None:
        return {}
    found = {}
    for layer, weight in linears_of(parameters).items():
        inputs = weight.shape[1]
        split = weight.dim == 1 and inputs % _RANKS == 0
        block = math.gcd(_BLOCK, inputs // _RANKS if split else inputs)
        if weight.kind in _KINDS and block >= _LEAST:
            found[layer] = Packing(form, block)
    return found


def check_streaming(names: Iterable[str], block_of: Callable[[str], str | None], places: int | None) -> None:
    """Raises ConfigError if a network has no more blocks than `places` of them on the device. names: of parameters."""
    blocks = len({block_of(name) for name in names} - {None})
    if places is not None and places >= blocks:
        raise ConfigError(
            f"--stream-blocks {places}: the network has {blocks} blocks; give a smaller number, or leave it out"
        )


def check_packings(parameters: Mapping[str, Parameter], form: str | None, tensor_size: int) -> None:
    """Raises ConfigError if the network has nothing to pack, or TP would cut a block."""
    found = packings(parameters, form)
    if form is not None and not found:
        raise ConfigError(
            f"--base-weights {form}: no linear of this network has inputs that are multiples of {_LEAST}; leave it out"
        )
    for layer, packing in found.items():
        weight = parameters[f"{layer}.weight"]
        inputs = weight.shape[1] // (tensor_size if weight.dim == 1 else 1)
        if inputs % packing.block:
            raise ConfigError(
                f"--base-weights {form}: {layer} has {inputs} inputs on each of {tensor_size} TP ranks, which blocks of "
                f"{packing.block} do not divide; use a --tensor-model-parallel-size of at most {_RANKS}"
            )
