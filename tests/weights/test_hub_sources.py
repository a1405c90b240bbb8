"""Every command on weights takes a hub's repository where a path of weights stands, and records its commit."""

import json
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT
from hub_server import hub as hub
from safetensors.torch import load_file

from mindspeed_mm.cli import adapters, weights
from mindspeed_mm.config.adapter_choice import AdapterChoice
from mindspeed_mm.config.evaluation import EVALUATE
from mindspeed_mm.config.hub import SOURCES, origin_of, record
from mindspeed_mm.weights import folder as pretrained_folder


@pytest.fixture
def base(hub, small_model):
    """The server, with a denoiser, its tuned copy, an autoencoder and text encoders."""
    state = torch.load(small_model / "model.pt", weights_only=True)
    tuned = {name: value + 0.01 if name.endswith("to_q.weight") else value for name, value in state.items()}
    hub.repos["org/base"] = {name: (small_model / name).read_bytes() for name in ("model.pt", "vae.pt")}
    hub.repos["org/texts"] = files_of(small_model, "t5", "clip")
    torch.save(tuned, small_model / "tuned.pt")
    hub.repos["org/tuned"] = {"model.pt": (small_model / "tuned.pt").read_bytes()}
    return hub


def files_of(folder: Path, *below: str) -> dict[str, bytes]:
    found = [path for name in below or (".",) for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def origin(name: str, **part: str) -> dict[str, str]:
    return {"repository": name, "revision": COMMIT, **part}


def recorded(folder: Path) -> dict:
    return json.loads((folder / SOURCES).read_text())


def test_split_and_merge(base, small_model, tmp_path, capsys):
    weights.split(["--load", "org/base:model.pt", "--save", str(tmp_path / "tp2"), "--tensor-model-parallel-size", "2"])
    assert recorded(tmp_path / "tp2") == {".": {"--load": origin("org/base", part="model.pt")}}
    base.repos["org/run"] = files_of(tmp_path / "tp2")
    weights.merge(["--load", "hf:org/run@main", "--save", str(tmp_path), "--format", "safetensors"])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "model.safetensors")
    assert recorded(tmp_path) == {"model.safetensors": {"--load": origin("org/run")}}
    wanted = torch.load(small_model / "model.pt", weights_only=True)
    assert all(torch.equal(value, wanted[name]) for name, value in load_file(tmp_path / "model.safetensors").items())


def test_inspect_and_convert_vae(base, tmp_path, capsys):
    weights.inspect(["org/base:model.pt", "--no-norms"])
    assert "proj_out" in capsys.readouterr().out
    weights.convert_vae(["--load", "org/base:vae.pt", "--save", str(tmp_path / "vae.safetensors")])
    assert recorded(tmp_path) == {"vae.safetensors": {"--load": origin("org/base", part="vae.pt")}}


def test_adapters(base, tmp_path):
    names = ["--load", "org/tuned:model.pt", "--base", "org/base:model.pt"]
    adapters.adapter(["extract", *names, "--save", str(tmp_path / "lora"), "--rank", "1"])
    sources = {"--load": origin("org/tuned", part="model.pt"), "--base": origin("org/base", part="model.pt")}
    assert recorded(tmp_path / "lora") == {".": sources}
    base.repos["org/lora"] = files_of(tmp_path / "lora")
    merge = ["--load", "org/base:model.pt", "--adapter", "org/lora=0.5", "--save", str(tmp_path / "merged")]
    adapters.adapter(["merge", *merge])
    sources = {"--load": origin("org/base", part="model.pt"), "--adapter 1": origin("org/lora")}
    assert recorded(tmp_path / "merged") == {"model.pt": sources}
    choice = AdapterChoice.read("org/lora=0.5")  # of sampling, too
    assert (origin_of(choice.path), choice.scale) == (origin("org/lora"), 0.5)


def test_export_keeps_the_names_of_encoders_that_it_does_not_copy(base, small_model, tmp_path):
    block = json.loads((small_model / "sample.json").read_text())
    block["predictor"]["from_pretrained"], block["ae"]["from_pretrained"] = "org/base:model.pt", "org/base:vae.pt"
    for name, part in (
        ("text_encoder", "t5"),
        ("tokenizer", "t5"),
        ("text_encoder_2", "clip"),
        ("tokenizer_2", "clip"),
    ):
        block[name]["from_pretrained"] = f"org/texts:{part}"
    (tmp_path / "sample.json").write_text(json.dumps(block))
    weights.export(["--mm-model", str(tmp_path / "sample.json"), "--save", str(tmp_path / "plain")])
    assert not any("org/texts" in path for _, path, _ in base.asked)
    index = json.loads((tmp_path / "plain" / "model_index.json").read_text())
    assert index["text_encoder"]["from_pretrained"] == "org/texts:t5"
    sources = {"predictor": origin("org/base", part="model.pt"), "ae": origin("org/base", part="vae.pt")}
    assert recorded(tmp_path / "plain") == {".": sources}
    read = pretrained_folder.read(tmp_path / "plain")  # downloads what the folder names
    assert origin_of(read.text_encoder.from_pretrained) == origin("org/texts", part="t5")
    weights.export(["--mm-model", str(tmp_path / "sample.json"), "--save", str(tmp_path / "all"), "--copy-encoders"])
    assert recorded(tmp_path / "all")["."]["tokenizer_2"] == origin("org/texts", part="clip")
    assert (tmp_path / "all" / "text_encoder" / "config.json").is_file()


def test_evaluation_takes_names_before_it_asks_the_hub():
    loss = ["--mm-model", __file__, "--mm-data", __file__, "--load", "org/run"]
    flags = EVALUATE.parse(["--videos", str(Path(__file__).parent), "--clip", "org/clip", *loss]).values
    assert (flags.videos.clip, flags.loss.load) == ("org/clip", "org/run")


def test_paths_of_this_machine_are_not_recorded(tmp_path):
    record(tmp_path, {"--load": "/weights/model.pt", "--base": None})
    assert list(tmp_path.iterdir()) == []
    cached = tmp_path / "hub" / "models--org--name.v1" / "snapshots" / COMMIT
    record(tmp_path / "b.pt", {"--load": cached})
    record(tmp_path / "a.pt", {"--load": cached / "vae" / "x.pt"})
    found = {"b.pt": {"--load": origin("org/name.v1")}, "a.pt": {"--load": origin("org/name.v1", part="vae/x.pt")}}
    assert recorded(tmp_path) == found
