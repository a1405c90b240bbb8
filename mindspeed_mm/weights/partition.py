"""How a denoiser's parameters are split over TP, asked of its layers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mindspeed_mm.errors import CheckpointError

_BLOCK = re.compile(r"transformer_blocks\.\d+\.\d+\.")
_SKIP = re.compile(r"^(skip_norm_linear(?:_enc)?)\.\d+\.")


def denoiser_partition() -> Callable[[str], int | None]:
    """A function from a parameter's name, in a denoiser of any size, to the dimension that is split over TP."""
    # A converter has no other use for the layers, and they bring megatron-core: 140 MB that would stay to its end. So
    # they are asked in a process of their own, unless this one has them anyway.
    table = partition_table() if "megatron.core" in sys.modules else _asked_elsewhere()

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


def _asked_elsewhere() -> dict[str, int | None]:
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    code = f"import json; from {__name__} import partition_table; print(json.dumps(partition_table()))"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"the layers of the denoiser could not be read:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])
