"""Imported once by the server that the ranks of `ranks.py` are forked from."""

import mindspeed_mm.parallel.engine
import mindspeed_mm.training.build  # noqa: F401
