"""Merge the shards of a run: `python examples/opensoraplan1.5/convert_mm_to_ckpt.py --help`, or `mindspeed-mm merge`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without installing it

from mindspeed_mm.cli.weights import merge

if __name__ == "__main__":
    merge()
