"""Published weights into networks, and checkpoints into merged files: where `checkpoint/` and `models/` meet."""

import re
from pathlib import Path

from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import files, layout, released, reshard
from mindspeed_mm.config.model import DenoiserConfig
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.models.sparse_ummdit.model import SparseUMMDiT
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.partition import partition_dims, shard

_log = logs.get(__name__)
_BLOCK = re.compile(r"transformer_blocks\.\d+\.\d+\.")


def load_denoiser(network: SparseUMMDiT, source: str | Path, ema: bool = False) -> None:
    """This rank's part of the weights in a merged file, or in a Megatron directory (of its EMA weights with `ema`)."""
    dims = partition_dims(network)
    if Path(source).is_dir():
        weights = released.read_megatron(source, denoiser_partition(), ema)
    else:
        weights = released.read_weights(source)
    blocks = network.transformer_blocks
    last = f"transformer_blocks.{len(blocks) - 1}.{len(blocks[-1]) - 1}"

    def part_of(name: str, whole: Tensor) -> Tensor:
        return shard(whole, dims[name], network.parallel)

    released.load_strict(network, weights.items(), part_of, released.text_tail(last), str(source))
    _log.info(f"loaded the denoiser from {source}")


def load_autoencoder(autoencoder: WFVAE, source: str | Path) -> None:
    """The weights of a WFVAE file, published or ours."""
    weights = released.read_autoencoder(source)
    released.load_strict(autoencoder, weights.items(), lambda name, whole: whole, set(), str(source))
    _log.info(f"loaded the autoencoder from {source}")


def merge_checkpoint(load_dir: str | Path, save_dir: str | Path, ema: bool = False) -> Path:
    """Merge the TP shards of the latest checkpoint under `load_dir` to `save_dir`/model.pt, or model_ema.pt with `ema`."""
    location = layout.find(Path(load_dir))
    shards = released.read_shards(location, ema)
    _log.info(f"merging {len(shards)} TP shards of {location.directory}")
    whole = dict(reshard.merged(shards, denoiser_partition(), "the model"))
    target = Path(save_dir) / ("model_ema.pt" if ema else "model.pt")
    target.parent.mkdir(parents=True, exist_ok=True)
    files.save(whole, target)
    size = sum(value.numel() * value.element_size() for value in whole.values())
    _log.info(f"wrote {target}: {len(whole)} tensors, {size / 2**20:.1f} MiB")
    return target


def denoiser_partition():
    """A function from a parameter's name, in a denoiser of any size, to the dimension that is split over TP.

    It is read off the layers of a small denoiser that has a parameter of every kind.
    """
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
    table = {_BLOCK.sub("transformer_blocks.*.*.", name): dim for name, dim in partition_dims(network).items()}

    def dim_of(name: str) -> int | None:
        pattern = re.sub(r"^(skip_norm_linear(?:_enc)?)\.\d+\.", r"\1.0.", _BLOCK.sub("transformer_blocks.*.*.", name))
        if pattern not in table:
            raise CheckpointError(
                f"{name}: no parameter of SparseUMMDiT has this name; is it another model's checkpoint?"
            )
        return table[pattern]

    return dim_of
