"""Fingerprint of a network's weights: says whether two files hold the same network, in any layout, format or precision.

Hashed are name, shape and the first numbers of every parameter, in bf16. So the weights of a run, their merged file, their
split over TP and their copy in bf16 have one fingerprint, and reading it takes a second. It does not detect damage, which
checksums do.
"""

import hashlib
import math

import torch

from mindspeed_mm.files.raw import as_bytes
from mindspeed_mm.files.reshard import Weights

_NUMBERS = 2**14  # of each parameter, in whole rows


def fingerprint(weights: Weights) -> str:
    """SHA-256 in hex of weights by our names. Parameters that no result depends on must be left out."""
    found = hashlib.sha256()
    for name in sorted(weights):
        shape = weights.shape(name)
        found.update(f"{name}{list(shape)}".encode())
        rows = max(1, _NUMBERS // max(1, math.prod(shape[1:])))
        first = next(iter(weights.chunks(name)))[:rows].to("cpu", torch.bfloat16).contiguous()
        found.update(as_bytes(first.reshape(-1)[:_NUMBERS].contiguous()))
    return found.hexdigest()
