"""Write all parts for sampling to one folder: `python tools/export_pretrained.py --help`, or `mindspeed-mm export`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.cli.weights import export

if __name__ == "__main__":
    export()
