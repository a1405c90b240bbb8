"""PSNR, SSIM, latent statistics and a side-by-side mp4 of a WFVAE: see --help and training/autoencoder_quality.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.launch import evaluate_autoencoder

if __name__ == "__main__":
    evaluate_autoencoder()
