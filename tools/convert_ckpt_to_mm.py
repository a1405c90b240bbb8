"""Split weights over tensor-parallel ranks: `python tools/convert_ckpt_to_mm.py --help`, or `mindspeed-mm split`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.cli.weights import split

if __name__ == "__main__":
    split()
