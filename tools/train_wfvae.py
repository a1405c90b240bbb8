"""Train or finetune a WFVAE: see --help and mindspeed_mm/training/autoencoder.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.launch import train_autoencoder

if __name__ == "__main__":
    train_autoencoder()
