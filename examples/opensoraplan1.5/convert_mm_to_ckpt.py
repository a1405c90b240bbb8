"""Merge the tensor-parallel shards of a training run into one file that sampling loads.

python examples/opensoraplan1.5/convert_mm_to_ckpt.py --load_dir RUN --save_dir OUT [--ema]
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without installing it

from mindspeed_mm import logs
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import flag, parse


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    load_dir: str = flag(
        "",
        "--load_dir",
        required=True,
        metavar="DIR",
        help="directory of a run (its --save), or one iter_XXXXXXX of it",
    )
    save_dir: str = flag(
        "",
        "--save_dir",
        required=True,
        metavar="DIR",
        help="folder for model.pt, or for model_ema.pt with --ema",
    )
    ema: bool = flag(False, "--ema", help="merge the EMA weights instead of the live ones")
    format: str = flag("pt", "--format", choices=("pt", "safetensors"), help="format of the result")
    dtype: str | None = flag(
        None, "--dtype", choices=("fp32", "bf16", "fp16"), help="dtype of the result; default: as trained"
    )
    max_shard_gb: float | None = flag(
        None,
        "--max-shard-gb",
        at_least=1e-3,
        at_most=1e6,
        unit="GB",
        help="safetensors: several files of at most this size, and an index",
    )
    dry_run: bool = flag(False, "--dry-run", help="print what would be written, and write nothing")


def main() -> None:
    logs.setup()
    with said_in_one_line():
        flags = parse(
            Flags,
            sys.argv[1:],
            description=__doc__.splitlines()[0],
            epilog="Shards are read and written tensor by tensor: neither they nor the result is ever held in memory. "
            "Names are Open-Sora Plan's, also if the run is MindSpeed-MM's. The path of the result is printed last.",
        ).values
        from mindspeed_mm.weights import merge_checkpoint  # imports torch, which --help does not need

        path = merge_checkpoint(
            flags.load_dir,
            flags.save_dir,
            flags.ema,
            format=flags.format,
            dtype=flags.dtype,
            largest=None if flags.max_shard_gb is None else int(flags.max_shard_gb * 1e9),
            dry_run=flags.dry_run,
        )
        print(path)


if __name__ == "__main__":
    main()
