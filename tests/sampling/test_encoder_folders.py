"""Folders of encoders and tokenizers that do not fit, or are damaged, end in one line that names key and folder."""

import dataclasses
import json
import os
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_mm.config import model_dialects
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.errors import CheckpointError, ConfigError, MMError
from mindspeed_mm.sampling.residence import Residence
from mindspeed_mm.sampling.text import PromptEncoder
from mindspeed_mm.schema import build, read_json


class Trap:
    """Pickles to a call."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


@pytest.fixture
def parts(small_model, tmp_path):
    """(config, folder of T5, folder of CLIP), the folders being copies."""
    config = build(SampleModelConfig, model_dialects.sample_node(read_json(small_model / "sample.json")))
    folders = {}
    for name in ("t5", "clip"):
        folders[name] = shutil.copytree(small_model / name, tmp_path / name)
    return at(config, **{name: str(folder) for name, folder in folders.items()}), folders["t5"], folders["clip"]


def at(config, **folders):
    """The config with its encoders and tokenizers in other folders."""
    names = {"t5": ("text_encoder", "tokenizer"), "clip": ("text_encoder_2", "tokenizer_2")}
    changes = {
        block: dataclasses.replace(getattr(config, block), from_pretrained=folder)
        for name, folder in folders.items()
        for block in names[name]
    }
    return dataclasses.replace(config, **changes)


def load(config) -> PromptEncoder:
    return PromptEncoder.load(config, Residence(torch.device("cpu")))


def refusal(config) -> str:
    with pytest.raises(MMError) as error:
        load(config)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def replaced(config, block, **values):
    return dataclasses.replace(config, **{block: dataclasses.replace(getattr(config, block), **values)})


def test_the_folders_as_they_are_load(parts):
    load(parts[0])


def test_a_tokenizer_of_the_other_encoder_is_named(parts):
    config, t5, clip = parts
    said = refusal(replaced(config, "tokenizer", from_pretrained=str(clip)))
    assert f"text_encoder ({t5}) and tokenizer ({clip}) do not belong together" in said
    said = refusal(replaced(config, "tokenizer_2", from_pretrained=str(t5)))
    assert f"text_encoder_2 ({clip}) and tokenizer_2 ({t5}) do not belong together" in said


def test_a_tokenizer_that_is_longer_than_clip_reads_is_named(parts):
    said = refusal(replaced(parts[0], "tokenizer_2", model_max_length=500))
    assert "the encoder reads 77 tokens, the tokenizer gives 500" in said


def test_encoders_in_each_others_place_are_named(parts):
    config, t5, clip = parts
    said = refusal(replaced(config, "text_encoder", from_pretrained=str(clip)))
    assert (
        said == f"text_encoder.from_pretrained: {clip} is an encoder of type 'clip_text_model'; model_id T5 needs 't5'"
    )
    assert "model_id CLIPWithProjection needs 'clip'" in refusal(
        replaced(config, "text_encoder_2", from_pretrained=str(t5))
    )


def test_a_width_that_the_denoiser_does_not_read_is_named(parts):
    config, t5, clip = parts
    said = refusal(dataclasses.replace(config, predictor=dataclasses.replace(config.predictor, caption_channels=128)))
    assert said == (
        f"text_encoder.from_pretrained: the features of {t5} are 64 wide, predictor.caption_channels is 128; give the "
        "encoder that the denoiser was trained with"
    )
    said = refusal(
        dataclasses.replace(config, predictor=dataclasses.replace(config.predictor, pooled_projection_dim=7))
    )
    assert f"the features of {clip} are 32 wide, predictor.pooled_projection_dim is 7" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds list, not the object"),
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("null", "holds NoneType"),
        ('{"vocab_size": "many"}', "vocab_size is many"),
        ('{"d_model": -3}', "d_model is -3"),
        ('{"auto_map": {"AutoModel": "evil.Model"}}', "auto_map asks for code"),
        ('{"quantization_config": {}}', "quantization_config asks for"),
    ],
)
def test_a_config_that_is_none(parts, text, message):
    config, t5, _ = parts
    (t5 / "config.json").write_text(text)
    said = refusal(config)
    assert f"text_encoder.from_pretrained: {t5}" in said and "config.json" in said and message in said


def test_a_config_that_transformers_cannot_use_is_one_line(parts):
    config, t5, _ = parts
    said = json.loads((t5 / "config.json").read_text())
    (t5 / "config.json").write_text(json.dumps({**said, "num_layers": "x", "d_kv": None}))
    assert str(t5) in refusal(config)


def as_bin(folder, value=None) -> None:
    weights = folder / "model.safetensors"
    torch.save(load_file(weights) if value is None else value, folder / "pytorch_model.bin")
    weights.unlink()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_cut_or_changed_are_named(parts, name):
    config, t5, _ = parts
    if name.endswith(".bin"):
        as_bin(t5)
        load(config)
    whole = (t5 / name).read_bytes()
    for data in (whole[:-100], whole[:50], b"", whole[: len(whole) // 2]):
        (t5 / name).write_bytes(data)
        assert f"text_encoder.from_pretrained: {t5}/{name}: " in refusal(config)
    if name.endswith(".bin"):
        (t5 / name).write_bytes(
            whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
        )
        assert "checksum" in refusal(config)


def test_weights_that_are_a_pickle_are_not_run(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, t5, _ = parts
    as_bin(t5, {"shared.weight": Trap()})
    assert "pytorch_model.bin: refused" in refusal(config)
    with zipfile.ZipFile(t5 / "pytorch_model.bin", "w") as archive:
        archive.writestr("x", "y")
    assert "not one that torch.save wrote" in refusal(config)
    assert not (tmp_path / "trapped").exists()


def test_values_that_are_not_finite_are_named(parts):
    config, t5, _ = parts
    weights = load_file(t5 / "model.safetensors")
    name = next(name for name in weights if name.endswith("wo.weight"))
    as_bin(t5, {**weights, name: torch.full_like(weights[name], float("nan"))})
    with pytest.raises(CheckpointError, match=f"{name} has values that are not finite"):
        load(config)


def test_code_beside_a_tokenizer_is_not_run(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, t5, _ = parts
    said = json.loads((t5 / "tokenizer_config.json").read_text())
    said |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (t5 / "tokenizer_config.json").write_text(json.dumps(said))
    (t5 / "evil.py").write_text("open('trapped', 'w')\nclass Evil: pass\n")
    try:
        load(config)
    except ConfigError as error:
        assert "tokenizer.from_pretrained" in str(error)
    assert not (tmp_path / "trapped").exists()


def test_an_adapter_in_the_folder_is_refused(parts):
    config, t5, _ = parts
    (t5 / "adapter_config.json").write_text("{}")
    assert "an adapter would change the encoder" in refusal(config)
