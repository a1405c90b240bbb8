"""Say what a checkpoint holds: `python tools/inspect_checkpoint.py --help`, or `mindspeed-mm inspect`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.cli.weights import inspect

if __name__ == "__main__":
    inspect()
