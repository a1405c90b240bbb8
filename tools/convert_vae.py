"""Convert the weights of a WFVAE, such as the published .ckpt, to one flat .safetensors (or .pt) file.

python tools/convert_vae.py --load merged.ckpt --save vae.safetensors
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm import logs
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.weights import convert_autoencoder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Taken are the EMA weights (`ema_state_dict`) if the file has any, else `state_dict`, and `gen_model` in "
        "it. NOT_USE_EMA_MODEL=1 in the environment takes the live weights.",
    )
    parser.add_argument("--load", required=True, help="a .ckpt, .pt or .safetensors file, or a folder with one")
    parser.add_argument("--save", required=True, help="file to write; it ends in .safetensors, or in .pt")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the result; default: as the source")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, and write nothing")
    options = parser.parse_args()
    logs.setup()
    with said_in_one_line():
        print(convert_autoencoder(options.load, options.save, dtype=options.dtype, dry_run=options.dry_run))


if __name__ == "__main__":
    main()
