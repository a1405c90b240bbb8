"""Published files, whole, through every program: checked, trained for two steps, extracted, sampled, served.

Only sizes, paths and steps of them are replaced, in their own text, so that every other key goes through every program as
it is published.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import mm_files
import pytest
import torch
from programs import ROOT, losses, page_of, run

import mindspeed_mm as mm
from mindspeed_mm import families

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))
from data_helpers import write_clip

_EXAMPLES = ROOT / "examples" / "opensoraplan1.5"
_PUBLISHED = ROOT.parent / "shared" / "published" / "mm26"  # MindSpeed-MM 26.0.0's files; not part of the project
_MODEL, _DATA, _INFERENCE = "pretrain_model.json", "data.json", "inference_model.json"
# All that is not as published: of v1.5's 24 heads of 128, 2 of 16, in as many layers; an autoencoder of 8 channels, not 160;
# T5 and CLIP of 64 and 32, not 2048 and 1280; clips and samples of 9x32x64; 2 steps of sampling, not 50.
_SIZES = {
    "num_heads": 2,
    "head_dim": 16,
    "timestep_embed_dim": 16,
    "caption_channels": 64,
    "pooled_projection_dim": 32,
    "base_channels": 8,
    "encoder_energy_flow_hidden_size": 8,
    "decoder_energy_flow_hidden_size": 8,
    "frames": 9,
    "num_frames": 9,
    "min_num_frames": 9,
    "max_height": 32,
    "max_width": 64,
    "max_hxw": 2048,
    "min_hxw": 2048,
    "size": [32, 64],
    "input_size": [9, 32, 64],
    "num_inference_steps": 2,
}
# key -> (what a published path holds, name in the test's folder); the first that fits
_PATHS = {
    "from_pretrained": (
        ("t5", "t5"), ("CLIP", "clip"), ("clip", "clip"), ("vae", "vae.pt"), ("path/to/pretrained/model", "model.pt"),
    ),
    "data_path": (("data.txt", "data.txt"),),
    "save_path": (("samples", "samples"),),
    "prompt": ((".txt", "prompts.txt"), ("", "prompts.txt")),
}  # fmt: skip
# The launch scripts' flags, where the test's own do not replace them.
_OURS = (
    "--model_custom_precision --optimizer-selection fused_ema_adamw --use-ema --lr 1e-5 --min-lr 1e-5 --lr-warmup-init 1e-5 "
    "--lr-warmup-iters 0 --lr-decay-style constant --adam-beta1 0.9 --adam-beta2 0.999 --adam-eps 1e-15 --weight-decay 1e-4 "
    "--clip-grad 1.0 --clip_grad_ema_decay 0.99 --accumulate-allreduce-grads-in-fp32 --seed 1024 --selective_recom "
    "--recom_ffn_layers 32 --use-distributed-optimizer --save-interval 1000 --log-interval 1 --train-iters 2"
)


@pytest.fixture(params=["ours", "MindSpeed-MM's in our words", "MindSpeed-MM's"])
def files(request, world, clips, tmp_path) -> Path:
    """A folder with pretrain_model.json, data.json and inference_model.json, made small, and with what they name."""
    names = {_MODEL: _MODEL, _DATA: _DATA, _INFERENCE: _INFERENCE}
    source = _PUBLISHED
    if request.param == "ours":
        source, names = (
            _EXAMPLES,
            {**names, _MODEL: "model_opensoraplan1_5.json", _INFERENCE: "inference_t2v_model1_5.json"},
        )
    elif request.param == "MindSpeed-MM's in our words":
        source = tmp_path / "words"
        source.mkdir()
        mm_files.write_configs(source)
    elif not _PUBLISHED.is_dir():
        pytest.skip("no published files")
    for mine, name in names.items():
        text = (source / name).read_text(encoding="utf-8")
        (tmp_path / mine).write_text(_small(text, tmp_path), encoding="utf-8")
    for name in ("t5", "clip"):
        (tmp_path / name).symlink_to(world / name)
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    (tmp_path / "rows.json").write_text(json.dumps([_row(tmp_path, number) for number in range(2)]))
    (tmp_path / "data.txt").write_text(f"{tmp_path},{tmp_path / 'rows.json'}\n")
    torch.manual_seed(0)
    config = dataclasses.replace(families.read_file(tmp_path / _INFERENCE, "ae"), from_pretrained=None)
    torch.save(mm.build_autoencoder(config).state_dict(), tmp_path / "vae.pt")
    return tmp_path


def _row(folder: Path, number: int) -> dict:
    write_clip(folder / f"{number}.mp4", 30, fps=24)
    size = {"height": 64, "width": 128}
    return {"path": f"{number}.mp4", "cap": f"a red circle {number}", "num_frames": 30, "fps": 24, "resolution": size}


def _small(text: str, folder: Path) -> str:
    """A published file's text with the sizes above, and with paths into `folder`."""
    for key, value in _SIZES.items():
        text = re.sub(rf'("{key}": *)(\d+|\[[\d,\s]*\])', rf"\g<1>{json.dumps(value)}", text)
    for key, places in _PATHS.items():
        text = re.sub(rf'("{key}": *)"([^"]*)"', lambda found, places=places: _placed(found, places, folder), text)
    return text


def _placed(found: re.Match, places: tuple, folder: Path) -> str:
    name = next(name for words, name in places if words in found[2])
    return f'{found[1]}"{folder / name}"'


def test_published_files_go_through_every_program(files):
    theirs = "hub_backend" in (files / _MODEL).read_text() and "patch_size_thw" in (files / _MODEL).read_text()
    checked = run("tools/check_dataset.py", ["--mm-data", files / _DATA], device=None)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "2 of 2 rows are used" in checked.stdout and "9x32x64=2" in checked.stdout

    flags = mm_files.TRAIN_FLAGS if theirs else _OURS.split()
    train = ["--mm-model", files / _MODEL, "--mm-data", files / _DATA, "--save", files / "save", *flags]
    trained = run("pretrain_opensoraplan.py", train)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert list(losses(trained.stdout + trained.stderr)) == [1, 2]

    preprocess = '"preprocess_parameters": {'
    text = (files / _DATA).read_text()
    folder = f'"basic_parameters": {{"feature_folder": "{files / "features"}",'
    (files / _DATA).write_text(
        text.replace(preprocess, f'{preprocess}"fixed_crops": 1,').replace('"basic_parameters": {', folder)
    )
    extracted = run("tools/extract_features.py", train)
    assert extracted.returncode == 0, extracted.stdout + extracted.stderr
    assert len(list((files / "features").glob("*.safetensors"))) == 2

    sample = ["--mm-model", files / _INFERENCE, "--load", files / "save", *(mm_files.SAMPLE_FLAGS if theirs else [])]
    sampled = run("inference.py", sample)
    assert sampled.returncode == 0, sampled.stdout + sampled.stderr
    assert mm.read_clip(next((files / "samples").glob("*.mp4")), range(9)).shape == (9, 32, 64, 3)

    assert "page.js" in page_of(["--mm-model", files / _INFERENCE, "--load", files / "save"])
