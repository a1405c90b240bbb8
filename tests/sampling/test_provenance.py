"""Which files a component's weights come from, and their hash."""

import hashlib
import json

import torch
from safetensors.torch import save_file

from mindspeed_mm.sampling.provenance import sha256, weight_files


def test_every_kind_of_weights_names_its_files(tmp_path):
    weights = {"a": torch.ones(2)}
    torch.save(weights, tmp_path / "model.pt")
    assert weight_files(tmp_path / "model.pt") == [tmp_path / "model.pt"]
    encoder = tmp_path / "t5"
    encoder.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        save_file(weights, encoder / name)
    (encoder / "config.json").write_text("{}")
    assert [path.name for path in weight_files(encoder)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text("{}")
    save_file(weights, hub / "diffusion_pytorch_model.safetensors")
    assert weight_files(hub) == [hub / "diffusion_pytorch_model.safetensors"]
    split = tmp_path / "split.safetensors.index.json"
    save_file(weights, tmp_path / "one.safetensors")
    split.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert weight_files(split) == [tmp_path / "one.safetensors"]


def test_the_hash_is_that_of_sha256sum(tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"weights").hexdigest()
