#!/usr/bin/env python
"""Encode a list once: `python tools/extract_features.py --help`, or `mindspeed-mm extract`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.cli.training import extract

if __name__ == "__main__":
    extract()
