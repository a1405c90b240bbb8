#!/usr/bin/env python
"""Look at a list before training on it: `python tools/check_dataset.py --help`, or `mindspeed-mm check-data`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.cli.check_data import check_data

if __name__ == "__main__":
    check_data()
