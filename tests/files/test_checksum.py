"""CRC-32 of pieces in a row, with isal and without."""

import importlib
import random
import sys
import zlib
from unittest import mock

import pytest

from mindspeed_mm.files import checksum


@pytest.mark.parametrize("isal", [True, False])
def test_pieces_in_a_row(isal):
    try:
        with mock.patch.dict(sys.modules, {} if isal else {"isal.isal_zlib": None}):
            joined = importlib.reload(checksum).joined
        chance = random.Random(0)
        pieces = [chance.randbytes(length) for length in (5, 0, 3_000_000, 1, 2**20)]
        assert joined((zlib.crc32(piece), len(piece)) for piece in pieces) == zlib.crc32(b"".join(pieces))
        assert joined([]) == 0
    finally:
        importlib.reload(checksum)
