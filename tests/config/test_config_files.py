"""Every config that this repository ships loads, and one wrong key in each section is refused with its path."""

import re
from pathlib import Path

import pytest

from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import build, node_from_python, read_json

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "examples/opensoraplan1.5/data.json": DataConfig,
    "examples/opensoraplan1.5/model_opensoraplan1_5.json": TrainModelConfig,
    "examples/opensoraplan1.5/inference_t2v_model1_5.json": SampleModelConfig,
    "configs/tool/tools.json": None,
}


def sections(value, path=""):
    """Paths of all objects in a plain JSON value, those of transforms' parameters included."""
    if isinstance(value, dict):
        yield path
        for key, item in value.items():
            yield from sections(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from sections(item, f"{path}[{index}]")


def test_every_shipped_config_is_listed_here():
    shipped = [*ROOT.glob("configs/**/*.json"), *ROOT.glob("examples/opensoraplan1.5/*.json")]
    assert {str(path.relative_to(ROOT)) for path in shipped} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_it_loads(name):
    node = read_json(ROOT / name)
    assert KINDS[name] is None or isinstance(build(KINDS[name], node), KINDS[name])


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind])
def test_one_wrong_key_in_each_section_is_refused(name):
    plain = read_json(ROOT / name).plain()
    paths = list(sections(plain))
    assert len(paths) >= 6
    for path in paths:
        broken = read_json(ROOT / name).plain()
        block = broken
        for part in re.findall(r"[^.\[\]]+", path):
            block = block[int(part)] if isinstance(block, list) else block[part]
        block["surely_unknown"] = 1
        with pytest.raises(ConfigError, match=re.escape(f"{path}.surely_unknown" if path else "surely_unknown")):
            build(KINDS[name], node_from_python(broken, ""))


def test_the_published_files_say_what_they_say():
    model = build(TrainModelConfig, read_json(ROOT / "examples/opensoraplan1.5/model_opensoraplan1_5.json"))
    assert model.predictor.num_layers == (2, 4, 6, 8, 6, 4, 2)
    assert model.predictor.sparsities == (1, 2, 4, 8, 4, 2, 1)
    assert model.predictor.hidden_size == 3072
    assert model.ae.strides == (8, 8, 8)
    assert model.ae.l1_downsample_block == "Spatial2xTime2x3DDownsample"  # published as l1_dowmsample_block
    assert len(model.ae.scale) == model.ae.latent_dim == 32
    data = build(DataConfig, read_json(ROOT / "examples/opensoraplan1.5/data.json"))
    assert data.dataset_param.enable_text_preprocessing  # published as enable_text_preprocess
    assert data.dataset_param.preprocess_parameters.num_frames == 121
    sample = build(SampleModelConfig, read_json(ROOT / "examples/opensoraplan1.5/inference_t2v_model1_5.json"))
    assert sample.latent_grid.shape(1, 32) == (1, 32, 16, 72, 128)
    assert sample.diffusion.shift == 7.0
