"""Imported once by the server that ranks and programs of tests are forked from (`ranks.forked_from_server`)."""

import contextlib
import gc

from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel  # noqa: F401

import mindspeed_mm.parallel.engine
import mindspeed_mm.sampling.run
import mindspeed_mm.training.build
import mindspeed_mm.training.extraction

with contextlib.suppress(ImportError):  # the extra "serve"
    import mindspeed_mm.serving.app  # noqa: F401

gc.freeze()  # a collection, which ends the turn of every rank, would look at a million objects of these imports each time
