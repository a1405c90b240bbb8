"""Merge the tensor-parallel shards of a training run into one file that sampling loads.

python examples/opensoraplan1.5/convert_mm_to_ckpt.py --load_dir RUN --save_dir OUT [--ema]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without installing it

from mindspeed_mm import logs
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.weights import merge_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Shards are read and written tensor by tensor: neither they nor the result is ever held in memory. Names "
        "are Open-Sora Plan's, also if the run is MindSpeed-MM's. The path of the result is printed last.",
    )
    parser.add_argument("--load_dir", required=True, help="directory of a run (its --save), or one iter_XXXXXXX of it")
    parser.add_argument("--save_dir", required=True, help="where model.pt, or model_ema.pt with --ema, is written")
    parser.add_argument("--ema", action="store_true", help="merge the EMA weights instead of the live ones")
    parser.add_argument("--format", default="pt", choices=("pt", "safetensors"), help="of the result (default pt)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the result; default: as trained")
    parser.add_argument(
        "--max-shard-gb", type=float, metavar="GB", help="safetensors: several files of at most this size, and an index"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, and write nothing")
    options = parser.parse_args()
    logs.setup()
    with said_in_one_line():
        path = merge_checkpoint(
            options.load_dir,
            options.save_dir,
            options.ema,
            format=options.format,
            dtype=options.dtype,
            largest=None if options.max_shard_gb is None else int(options.max_shard_gb * 1e9),
            dry_run=options.dry_run,
        )
        print(path)


if __name__ == "__main__":
    main()
