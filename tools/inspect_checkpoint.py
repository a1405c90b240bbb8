"""Say what a checkpoint holds: kind, dialect, TP size, iteration, EMA, dtypes, norms, and how it fits a config.

python tools/inspect_checkpoint.py RUN [--mm-model model_opensoraplan1_5.json]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.config.model_dialects import network_config
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.weights import describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "path", help="Megatron directory, merged .pt or .safetensors file, index, WFVAE .ckpt, or a folder with one"
    )
    parser.add_argument(
        "--mm-model", metavar="JSON", help="model or inference JSON: list what does not fit its network"
    )
    parser.add_argument(
        "--block",
        default="predictor",
        choices=("predictor", "ae"),
        help="of the JSON: the denoiser (default) or the autoencoder",
    )
    parser.add_argument("--no-norms", action="store_true", help="read names and shapes only, which takes a second")
    options = parser.parse_args()
    with said_in_one_line():
        config = None if options.mm_model is None else network_config(options.mm_model, options.block)
        for line in describe(options.path, config, norms=not options.no_norms):
            print(line)


if __name__ == "__main__":
    main()
