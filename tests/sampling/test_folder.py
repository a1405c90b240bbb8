"""One folder holds all that sampling needs; sampling starts from every kind of weights; the tools do what they say."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from config_files import AUTOENCODER, PREDICTOR, sample_block
from safetensors.torch import load_file

import mindspeed_mm as mm
from mindspeed_mm import logs
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import layout
from mindspeed_mm.weights import merge_checkpoint, split_checkpoint

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "examples" / "quickstart"))

from tiny_encoders import write_encoders  # noqa: E402

TOOLS = [
    "examples/opensoraplan1.5/convert_mm_to_ckpt.py",
    "tools/convert_ckpt_to_mm.py",
    "tools/convert_vae.py",
    "tools/export_pretrained.py",
    "tools/inspect_checkpoint.py",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with encoders, weights and sample.json, of one sampling step."""
    folder = tmp_path_factory.mktemp("world")
    write_encoders(folder, ["a red circle", "a blue square moves to the left"])
    torch.manual_seed(0)
    torch.save(mm.build_autoencoder(AUTOENCODER).state_dict(), folder / "vae.pt")
    torch.save(mm.build_denoiser(PREDICTOR, seed=3).state_dict(), folder / "model.pt")
    block = sample_block(folder)
    block["diffusion"]["num_inference_steps"] = 1
    block["weight_dtype"] = "fp32"
    (folder / "sample.json").write_text(json.dumps(block))
    return folder


@pytest.fixture(scope="module")
def video(world) -> np.ndarray:
    return sampled(mm.T2VPipeline.from_config(world / "sample.json"))


def sampled(pipeline) -> np.ndarray:
    return pipeline("a red circle", seed=1, progress=False)


def run_tool(monkeypatch, capsys, name: str, *flags) -> str:
    """What a tool prints; the result is on the last line."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
    monkeypatch.setattr(logs, "setup", lambda: None)  # this process's log stays as the tests want it
    runpy.run_path(str(ROOT / name), run_name="__main__")
    return capsys.readouterr().out


def test_a_saved_pipeline_comes_back_whole(world, video, tmp_path):
    pipeline = mm.T2VPipeline.from_config(world / "sample.json")
    folder = pipeline.save_pretrained(tmp_path / "hub", max_shard_bytes=60_000)
    held = {path.name for path in folder.iterdir()}
    assert {"config.json", "model_index.json", "vae", "text_encoder", "text_encoder_2", "tokenizer"} <= held
    assert "diffusion_pytorch_model.safetensors.index.json" in held
    moved = folder.rename(tmp_path / "elsewhere")  # as after a download
    assert np.array_equal(sampled(mm.T2VPipeline.from_pretrained(moved)), video)
    # also part by part, by one call each
    state = mm.build_denoiser(moved).state_dict()
    wanted = torch.load(world / "model.pt", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in wanted.items() if value is not None)
    vae = mm.build_autoencoder(moved / "vae").state_dict()
    assert all(torch.equal(vae[name], value) for name, value in torch.load(world / "vae.pt", weights_only=True).items())


def test_the_tool_writes_the_same_folder_from_files(world, video, tmp_path, monkeypatch, capsys):
    name, flags = "tools/export_pretrained.py", ["--mm-model", world / "sample.json", "--save_dir", tmp_path / "hub"]
    run_tool(monkeypatch, capsys, name, *flags, "--dry-run")
    assert not (tmp_path / "hub").exists()
    printed = run_tool(monkeypatch, capsys, name, *flags)
    assert printed.splitlines()[-1] == str(tmp_path / "hub")
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["_class_name"] == "SparseUMMDiT"
    assert np.array_equal(sampled(mm.T2VPipeline.from_pretrained(tmp_path / "hub")), video)
    with pytest.raises(SystemExit) as stopped:
        run_tool(monkeypatch, capsys, name, *flags)
    assert stopped.value.code == 1 and "config.json: exists already" in capsys.readouterr().err


def test_a_folder_without_its_configs_is_named(world, tmp_path):
    with pytest.raises(CheckpointError, match="config.json: missing; a folder to sample from holds"):
        mm.T2VPipeline.from_pretrained(tmp_path)


def test_sampling_starts_from_every_source(world, video, tmp_path):
    found = {
        "osp": split_checkpoint(world / "model.pt", tmp_path / "osp", 2, text_tail="write"),
        "mm": split_checkpoint(world / "model.pt", tmp_path / "mm", 2, dialect="MM"),
        "safetensors": merge_checkpoint(world / "model.pt", tmp_path / "one", format="safetensors"),
        "several": merge_checkpoint(world / "model.pt", tmp_path / "several", format="safetensors", largest=60_000),
    }
    found["folder"] = found["several"].parent
    found["iteration"] = layout.find(found["mm"]).directory
    block = json.loads((world / "sample.json").read_text())
    for name, path in found.items():
        block["predictor"]["from_pretrained"] = str(path)
        assert np.array_equal(sampled(mm.T2VPipeline.from_config(block)), video), name
    loaded = mm.T2VPipeline.from_config(world / "sample.json", load=str(found["mm"]))
    assert np.array_equal(sampled(loaded), video)


@pytest.mark.parametrize("name", TOOLS)
def test_help_of_a_tool(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_tool(monkeypatch, capsys, name, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "usage:" in text and ("--dry-run" in text or "inspect" in name)


def test_the_converters_print_where_the_result_is(world, tmp_path, monkeypatch, capsys):
    split = ["--load", world / "model.pt", "--save_dir", tmp_path / "tp2", "--tensor-model-parallel-size", 2]
    run_tool(monkeypatch, capsys, "tools/convert_ckpt_to_mm.py", *split, "--dry-run")
    assert not (tmp_path / "tp2").exists()
    assert run_tool(monkeypatch, capsys, "tools/convert_ckpt_to_mm.py", *split).splitlines()[-1] == str(
        tmp_path / "tp2"
    )
    merge = ["--load_dir", tmp_path / "tp2", "--save_dir", tmp_path, "--format", "safetensors", "--dtype", "bf16"]
    printed = run_tool(monkeypatch, capsys, "examples/opensoraplan1.5/convert_mm_to_ckpt.py", *merge)
    assert printed.splitlines()[-1] == str(tmp_path / "model.safetensors")
    wanted = torch.load(world / "model.pt", weights_only=True)
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in wanted.items() if value is not None)


def test_inspection_says_what_is_there_and_what_does_not_fit(world, tmp_path, monkeypatch, capsys):
    split_checkpoint(world / "model.pt", tmp_path / "mm", 2, dialect="MM")
    fits = run_tool(
        monkeypatch, capsys, "tools/inspect_checkpoint.py", tmp_path / "mm", "--mm-model", world / "sample.json"
    )
    for words in ("2 TP ranks", "MindSpeed-MM", "EMA weights: no", "fp32", "fits the config", "num_layers [2, 2, 2]"):
        assert words in fits, words
    whole = torch.load(world / "model.pt", weights_only=True)
    norm = torch.linalg.vector_norm(torch.cat([whole["proj_out.weight"].ravel(), whole["proj_out.bias"]]).double())
    line = next(line for line in fits.splitlines() if line.strip().startswith("proj_out"))
    assert line.endswith(f"norm {norm.item():.6g}")
    block = json.loads((world / "sample.json").read_text())
    block["predictor"].update(num_layers=[2, 4, 2])
    (tmp_path / "other.json").write_text(json.dumps(block))
    other = run_tool(
        monkeypatch, capsys, "tools/inspect_checkpoint.py", tmp_path / "mm", "--mm-model", tmp_path / "other.json"
    )
    assert "model does not fit the config: " in other
    assert "num_layers is (2, 2, 2) by the weights, (2, 4, 2) in the config" in other


def wrapped(case: str, normal: dict, ema: dict):
    """The layouts of WFVAE files that the golden table names."""
    prefixed = {f"module.{name}": value for name, value in ema.items()}
    return {
        "plain state dict": normal,
        "{'state_dict': sd}": {"state_dict": normal},
        "{'state_dict': {'gen_model': sd}}": {"state_dict": {"gen_model": normal}},
        "ema with 'module.' prefix + gen_model": {"ema_state_dict": prefixed, "state_dict": {"gen_model": normal}},
        "ema without prefix + state_dict": {"ema_state_dict": ema, "state_dict": normal},
        "same, NOT_USE_EMA_MODEL=1": {"ema_state_dict": ema, "state_dict": normal},
        "same, NOT_USE_EMA_MODEL=0": {"ema_state_dict": ema, "state_dict": normal},
        "empty ema + gen_model": {"ema_state_dict": {}, "state_dict": {"gen_model": normal}},
        "ema only": {"ema_state_dict": ema},
    }.get(case)


def test_every_layout_of_an_autoencoder_file_is_converted(golden, world, tmp_path, monkeypatch, capsys):
    normal = torch.load(world / "vae.pt", weights_only=True)
    ema = {name: value + 1 for name, value in normal.items()}
    converted = 0
    for number, row in enumerate(json.loads(golden("vae/ckpt_layouts.json").read_text())):
        content = wrapped(row["case"], normal, ema)
        if content is None:
            continue
        torch.save(content, tmp_path / "merged.ckpt")
        if row["env"] is not None:
            monkeypatch.setenv("NOT_USE_EMA_MODEL", row["env"])
        target = tmp_path / f"vae{number}.safetensors"
        run_tool(monkeypatch, capsys, "tools/convert_vae.py", "--load", tmp_path / "merged.ckpt", "--save", target)
        monkeypatch.delenv("NOT_USE_EMA_MODEL", raising=False)
        # the original takes the variable's "0" for a yes; we do not
        wanted = ema if row["loaded"] == "ema" or row["env"] == "0" else normal
        found = load_file(target)
        assert found.keys() == wanted.keys(), row["case"]
        assert all(torch.equal(found[name], value) for name, value in wanted.items()), row["case"]
        converted += 1
    assert converted == 9
