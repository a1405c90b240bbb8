"""A new network is a file of facts, a folder of tensors and two rows: the ordinary code does the rest."""

import json
from pathlib import Path

import config_files
import numpy as np
import pytest
import torch
from config_files import change
from data_helpers import row, write_clip, write_list
from data_runs import train
from ranks import run_ranks
from sampling_world import write_world
from toy_family import FAMILY, ToyConfig, registered

from mindspeed_mm import weights
from mindspeed_mm.config import resolve
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.partition import partition_dims
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.weights import sources

PREDICTOR = {"model_id": "Toy", "channels": 4, "words": 64}
TENSOR = 2


@pytest.fixture(autouse=True)
def toy():
    with registered():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Configs of the toy without a second text encoder, two clips, T5 and the autoencoder."""
    folder = write_world(tmp_path_factory.mktemp("toy"))
    clips = write_list(folder, [row(write_clip(folder / f"{n}.mp4", 9, fps=8).name, fps=8) for n in range(2)], "clips")
    for name, block in (("model", config_files.model_block), ("data", config_files.data_block)):
        (folder / f"{name}.json").write_text(json.dumps(block(folder)))
    for name in ("model", "sample"):
        change(folder / f"{name}.json", "text_encoder_2", KeyError)
        change(folder / f"{name}.json", "predictor", PREDICTOR)
    change(folder / "data.json", "dataset_param.basic_parameters.data_path", str(clips))
    change(folder / "data.json", "dataset_param.tokenizer_config_2", KeyError)
    change(folder / "sample.json", "tokenizer_2", KeyError)
    return folder


def toy_train(flags: list, ranks: int) -> dict | str:
    with registered():
        return train(flags, ranks)


def trained(world: Path, save: str, iterations: int, *more) -> dict | str:
    """Two ranks of TP; what the run gives."""
    files = ["--mm-data", world / "data.json", "--mm-model", world / "model.json", "--save", world / save]
    flags = [*files, "--lr", 1e-2, "--train-iters", iterations, "--use-ema", *more]
    return run_ranks(toy_train, TENSOR, [*flags, "--tensor-model-parallel-size", TENSOR], TENSOR)[0]


def test_what_the_family_says_is_what_the_network_has():
    config = ToyConfig(channels=4, words=64)
    network = build_denoiser(config, ParallelContext.current())
    found = FAMILY.parameters(config)
    assert {name: tuple(value.shape) for name, value in network.named_parameters()} == {
        name: fact.shape for name, fact in found.items()
    }
    assert partition_dims(network) == {name: fact.dim for name, fact in found.items()}


def test_it_trains_resumes_merges_and_samples(world):
    whole = trained(world, "whole", 3)
    first = trained(world, "halves", 2)
    resumed = trained(world, "halves", 3, "--load", world / "halves")
    assert set(whole["losses"]) == {1, 2, 3} and len(set(whole["losses"].values())) == 3
    assert first["losses"] | resumed["losses"] == whole["losses"]

    checkpoint = sources.open_checkpoint(world / "halves")
    assert (checkpoint.family, checkpoint.tensor_size) == (FAMILY, TENSOR)
    assert any("layers" in line for line in weights.describe(world / "halves", ToyConfig(channels=4, words=64)))
    merged = weights.merge_checkpoint(world / "halves", world / "merged", ema=True)
    held = torch.load(merged, weights_only=True)
    assert {name: tuple(value.shape) for name, value in held.items()} == {
        name: fact.shape for name, fact in FAMILY.parameters(ToyConfig(channels=4, words=64)).items()
    }
    change(world / "sample.json", "predictor.from_pretrained", str(merged))
    frames = T2VPipeline.from_config(world / "sample.json")("a red circle", progress=False)
    assert frames.shape == (9, 32, 32, 3) and frames.dtype == np.uint8
    weights.split_checkpoint(merged, world / "split", 2, dialect="TOY")
    again = T2VPipeline.from_config(world / "sample.json", load=str(world / "split"))("a red circle", progress=False)
    assert np.array_equal(frames, again)


def test_its_rules_are_those_of_its_family(world, tmp_path):
    flags = ["--mm-data", world / "data.json", "--mm-model", tmp_path / "model.json", "--train-iters", "1", "--lr", "1"]
    (tmp_path / "model.json").write_text((world / "model.json").read_text())
    change(tmp_path / "model.json", "predictor.channels", 5)
    with pytest.raises(ConfigError, match=r"predictor\.channels: not 4"):
        resolve.run_config(list(map(str, flags)), world_size=1)
