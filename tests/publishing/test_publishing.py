"""An exported folder goes to a hub with a card that is made from its run, and with nothing that names this machine."""

import argparse
import json
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import hub as hub
from huggingface_hub import ModelCard
from PIL import Image

from mindspeed_mm.cli import weights
from mindspeed_mm.files import layout
from mindspeed_mm.publishing import card, exported, upload
from mindspeed_mm.weights import split_checkpoint

STATE = {
    "iteration": 40,
    "consumed_train_samples": 160,
    "clip": {},
    "data": {"clips": 24, "ledger": {"good": 158, "bad_samples": {"/data/secret/a.mp4": "broken"}}},
    "args": argparse.Namespace(
        lr=3e-4, use_ema=True, mm_data="/data/secret/data.json", save="/data/secret/run", seed=7
    ),
}
REPORT = {
    "rows": 30,
    "used": 24,
    "shapes": {"9x32x32": 20, "1x32x32": 4},
    "dropped": {"too_short": {"count": 6, "rows": ["/data/secret/b.mp4"]}},
}


@pytest.fixture(scope="module")
def run(small_model, tmp_path_factory) -> Path:
    """The folder of a run with all that a card tells."""
    folder = tmp_path_factory.mktemp("run")
    split_checkpoint(small_model / "model.pt", folder, 1)
    iteration = folder / "iter_0000040"
    layout.find(folder).directory.rename(iteration)
    (folder / layout.TRACKER).write_text("40")
    for record in iteration.glob("*.json"):
        record.unlink()  # checksums of the file that changes now
    file = iteration / "mp_rank_00" / layout.MODEL_FILE
    torch.save({**torch.load(file, weights_only=False), **STATE}, file)
    rows = [
        {"kind": "step", "iteration": step, "loss": 1 / step, "gradient_norm": 1.0, "global_batch_size": 4}
        for step in range(1, 51)  # ten steps more than the checkpoint has
    ]
    rows.append({"kind": "values", "iteration": 40, "ema eval loss": 0.125})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data").mkdir()
    (folder / "data" / "dropped.json").write_text(json.dumps(REPORT))
    for iteration, colour in ((20, "red"), (40, "green"), (60, "blue")):  # the run went on after the checkpoint
        (folder / "samples" / f"iter_{iteration:07d}").mkdir(parents=True)
        Image.new("RGB", (4, 4), colour).save(folder / "samples" / f"iter_{iteration:07d}" / "contact_sheet.png")
    return folder


def export(*flags: object) -> None:
    weights.export([*map(str, flags)])


@pytest.fixture
def ours(small_model, run, tmp_path) -> Path:
    folder = tmp_path / "toy"
    export("--mm-model", small_model / "sample.json", "--load", run, "--save", folder, "--copy-encoders")
    return folder


def test_a_folder_is_uploaded_whole_into_a_private_repository(small_model, run, hub, tmp_path, capsys):
    folder, said = tmp_path / "toy", ["--license", "apache-2.0", "--base-model", "org/base"]
    flags = ["--mm-model", small_model / "sample.json", "--load", run, "--save", folder, "--copy-encoders"]
    export(*flags, "--push", "org/toy", *said)
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.endpoint}/org/toy"
    (created,) = hub.created
    assert (created["name"], created["organization"], created["visibility"]) == ("toy", "org", "private")
    assert {token for _, path, token in hub.asked if "models" in path or "create" in path} == {"Bearer hf_secret"}
    here = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.repos["org/toy"] == here
    assert {"README.md", "images/curves.png", "images/samples.png", "config.json", "vae/config.json"} <= set(here)
    found = ModelCard(here["README.md"].decode())
    assert (found.data.license, found.data.base_model, found.data.pipeline_tag, found.data.library_name) == (
        *("apache-2.0", "org/base", "text-to-video", "mindspeed-mm"),
    )


def test_the_card_tells_the_run_up_to_its_checkpoint_and_no_path(ours, run):
    export("--save", ours, "--load", run, "--card")
    text = (ours / card.CARD).read_text()
    losses = sum(1 / step for step in range(1, 41)) / 40
    for line in (
        "| steps | 40 |",
        "| samples seen | 160 |",
        "| samples per step | 4 |",
        f"| loss, mean of the last 40 steps | {losses:.4g} |",
        "| ema eval loss | 0.125 |",
        "| `--lr` | 0.0003 |",
        "| `--use-ema` | yes |",
        "24 clips of a list of 30. Left out: 6 by the rule too_short. Unreadable while training: 1.",
        "| 9x32x32 | 20 |",
        "None was stated.",
        "makes 9 frames of 32 x 32 pixels",
    ):
        assert line in text, f"{line}\n{text}"
    assert "secret" not in text and str(ours.parent) not in text
    assert "/" not in yaml.safe_load(text.split("---")[1])["tags"][0]
    assert Image.open(ours / "images" / "samples.png").getpixel((0, 0)) == (0, 128, 0)
    assert f"{sum(tensor.numel() for tensor in weights_of(ours)):,} parameters in float32" in text


def test_the_base_is_the_hubs_repository_that_the_run_recorded(ours, run):
    origin = {"predictor": {"repository": "org/base", "revision": "a" * 40}}
    (run / "sources.json").write_text(json.dumps({".": origin}))
    export("--save", ours, "--load", run, "--card")
    text = (ours / card.CARD).read_text()
    assert ModelCard(text).data.base_model == "org/base"
    assert f"[org/base](https://huggingface.co/org/base) at {'a' * 40}." in text
    (run / "sources.json").unlink()


def weights_of(folder: Path):
    from safetensors.torch import load_file

    return load_file(folder / "diffusion_pytorch_model.safetensors").values()


def test_a_card_that_somebody_wrote_is_kept_and_one_without_a_run_says_so(ours, tmp_path):
    export("--save", ours, "--card")
    assert "The record of the run is not at hand." in (ours / card.CARD).read_text()
    (ours / card.CARD).write_text("mine")
    export("--save", ours, "--card")
    assert (ours / card.CARD).read_text() == "mine"


def test_an_upload_that_was_refused_goes_on(ours, hub, capsys):
    hub.refuse = 507
    with pytest.raises(SystemExit):
        export("--save", ours, "--push", "org/toy")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: --push org/toy: ") and "need not be sent again" in said
    hub.refuse, sent = None, len(hub.blobs)
    assert sent > 0
    hub.asked.clear()
    export("--save", ours, "--push", "org/toy", "--public")
    assert [path for method, path, _ in hub.asked if method == "PUT"] == []
    assert "config.json" in hub.repos["org/toy"] and hub.created[0]["visibility"] == "private"


def test_a_folder_that_works_here_alone_is_refused(small_model, hub, tmp_path, capsys):
    folder = tmp_path / "toy"
    with pytest.raises(SystemExit):
        export("--mm-model", small_model / "sample.json", "--save", folder, "--push", "org/toy")
    assert "text_encoder.from_pretrained" in (said := capsys.readouterr().err) and "--copy-encoders" in said
    assert hub.asked == []
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        index[name]["from_pretrained"] = "google/t5"
    (folder / "model_index.json").write_text(json.dumps(index))
    export("--save", folder, "--push", "org/toy")
    assert "config.json" in hub.repos["org/toy"]


def test_a_folder_for_diffusers(small_model, tmp_path):
    folder = tmp_path / "toy"
    export("--mm-model", small_model / "sample.json", "--format", "diffusers", "--save", folder, "--card")
    found = exported.read(folder)
    assert (found.format, found.size, exported.faults(found)) == (exported.DIFFUSERS, (9, 32, 32), [])
    text = (folder / card.CARD).read_text()
    assert ModelCard(text).data.library_name == "diffusers" and 'from_pretrained("toy", trust_remote_code=True)' in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--save", "x", "--push", "toy"], "expected a repository, org/name"),
        (["--save", "x", "--push", "modelscope:org/toy"], "only a hub with Hugging Face's API"),
        (["--save", "x", "--card"], "model_index.json: missing"),
        (["--save", "x"], "--mm-model is needed, unless --push or --card"),
    ],
)
def test_refusals(flags, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        export(*flags)
    assert said in capsys.readouterr().err


def test_paths_of_this_machine_are_found(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"a": [{"_name_or_path": str(tmp_path)}], "b": "/no/such/file"}))
    (tmp_path / "left.tmp").write_text("")
    assert exported.paths_in(tmp_path) == [f"config.json: {tmp_path}"]
    assert [path.name for path in upload.files_of(tmp_path)] == ["config.json"]
