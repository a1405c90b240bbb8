"""Draw training runs: `python tools/plot_run.py --help`, or `mindspeed-mm plot`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.cli.plot import plot

if __name__ == "__main__":
    plot()
