"""Convert the weights of a WFVAE: `python tools/convert_vae.py --help`, or `mindspeed-mm convert-vae`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.cli.weights import convert_vae

if __name__ == "__main__":
    convert_vae()
