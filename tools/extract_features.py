#!/usr/bin/env python
"""Encode a list once, so that training needs neither the autoencoder nor the text encoders: see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm.launch import extract_features

if __name__ == "__main__":
    extract_features()
