"""How a denoiser's parameters are split over TP: as its layers say, and kept beside this file.

Asking the layers takes five seconds and 140 MB, because they bring megatron-core, and a converter has no other use for
them. After a change of the layers: `python -m mindspeed_mm.weights.partition`; a test compares.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from mindspeed_mm.errors import CheckpointError

_FILE = Path(__file__).with_name("partition.json")
_BLOCK = re.compile(r"transformer_blocks\.\d+\.\d+\.")
_SKIP = re.compile(r"^(skip_norm_linear(?:_enc)?)\.\d+\.")


def denoiser_partition() -> Callable[[str], int | None]:
    """A function from a parameter's name, in a denoiser of any size, to the dimension that is split over TP."""
    table = json.loads(_FILE.read_text(encoding="utf-8"))

    def dim_of(name: str) -> int | None:
        pattern = _SKIP.sub(r"\1.0.", _BLOCK.sub("transformer_blocks.*.*.", name))
        if pattern not in table:
            raise CheckpointError(
                f"{name}: no parameter of SparseUMMDiT has this name; is it another model's checkpoint?"
            )
        return table[pattern]

    return dim_of


def partition_table() -> dict[str, int | None]:
    """The dimension by name, with `*` for the numbers of blocks, read off the layers of a small denoiser.

    It has a parameter of every kind.
    """
    from mindspeed_mm.config.model import DenoiserConfig
    from mindspeed_mm.models.build import build_denoiser
    from mindspeed_mm.parallel.context import ParallelContext
    from mindspeed_mm.parallel.partition import partition_dims

    parallel = ParallelContext.current()
    sample = DenoiserConfig(
        num_layers=(2, 2, 2),
        sparse_n=(1, 1, 1),
        double_ff=True,
        skip_connection=True,
        skip_connection_zero_init=False,
        num_heads=parallel.tensor_size * parallel.context_size,
        head_dim=16,
        in_channels=1,
        caption_channels=1,
    )
    network = build_denoiser(sample, parallel, device="meta", seed=None)
    return {_BLOCK.sub("transformer_blocks.*.*.", name): dim for name, dim in partition_dims(network).items()}


if __name__ == "__main__":
    _FILE.write_text(json.dumps(partition_table(), indent=0) + "\n", encoding="utf-8")
