"""Merge the tensor-parallel shards of a training run into one file that sampling loads.

python examples/opensoraplan1.5/convert_mm_to_ckpt.py --load_dir RUN --save_dir OUT [--ema]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without installing it

from mindspeed_mm import logs
from mindspeed_mm.errors import MMError
from mindspeed_mm.weights import merge_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load_dir", required=True, help="directory of a run (its --save), or one iter_XXXXXXX of it")
    parser.add_argument("--save_dir", required=True, help="where model.pt, or model_ema.pt with --ema, is written")
    parser.add_argument("--ema", action="store_true", help="merge the EMA weights instead of the live ones")
    options = parser.parse_args()
    logs.setup()
    try:
        print(merge_checkpoint(options.load_dir, options.save_dir, options.ema))
    except MMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
