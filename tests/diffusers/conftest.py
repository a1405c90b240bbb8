"""A small model as a folder of diffusers, written once, and the frames that `T2VPipeline` makes of it."""

from pathlib import Path

import numpy as np
import pytest
from eight_bits import PROMPT, SEED, as_uint8

import mindspeed_mm as mm
from mindspeed_mm.cli import weights


@pytest.fixture(scope="session")
def folder(small_model, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("diffusers") / "hub"
    flags = ["--mm-model", small_model / "sample.json", "--format", "diffusers", "--output", target]
    weights.export([*map(str, flags), "--max-shard-gb", "0.001"])
    return target


@pytest.fixture(scope="session")
def ours(small_model) -> np.ndarray:
    """Frames uint8 [T,H,W,3]."""
    return mm.T2VPipeline.from_config(small_model / "sample.json")(PROMPT, seed=SEED, progress=False)


@pytest.fixture
def pipeline(folder):
    from mindspeed_mm.diffusers import OpenSoraPlanPipeline

    pipeline = OpenSoraPlanPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def frames(pipeline):
    """Function from arguments of the call to frames uint8 [B,T,H,W,3]."""
    return lambda **given: as_uint8(pipeline(**{"prompt": PROMPT, "seed": SEED, "output_type": "np", **given}).frames)
