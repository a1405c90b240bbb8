"""Train or finetune a WFVAE: `python tools/train_wfvae.py --help`, or `mindspeed-mm train-vae`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.cli.training import train_vae

if __name__ == "__main__":
    train_vae()
