"""Measure what a WFVAE keeps: `python tools/eval_vae.py --help`, or `mindspeed-mm eval-vae`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.cli.training import eval_vae

if __name__ == "__main__":
    eval_vae()
