"""Every config that this repository ships loads, and one wrong key in each section is refused with its path."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.config.sample import PromptConfig, SampleModelConfig
from mindspeed_mm.config.tool import ToolConfig
from mindspeed_mm.config.transforms import TRANSFORMS
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import Node, build, node_from_python, read_json
from mindspeed_mm.schema.fields import facts_of

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


def config_classes(cls):
    """A config and all configs inside it."""
    yield cls
    for hint in typing.get_type_hints(cls).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part) and part is not Node:
                yield from config_classes(part)


def test_every_number_of_a_config_has_a_range():
    classes = {
        cls
        for kind in (TrainModelConfig, DataConfig, SampleModelConfig, PromptConfig, ToolConfig)
        for cls in config_classes(kind)
    }
    assert len(classes) > 15
    for cls in classes | set(TRANSFORMS.values()):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            plain = {hints[field.name], *typing.get_args(hints[field.name])}
            plain |= {item for part in plain for item in typing.get_args(part)}
            if {int, float} & plain:
                assert facts_of(field).range(), f"{cls.__name__}.{field.name}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ae_stride_t", 0, "0: must be from 1 to 64"),
        ("num_frames", -1, "-1: must be from 1 to 1048576"),
        ("train_fps", float("nan"), "must be finite"),
        ("speed_factor", 0, "0: must be above 0"),
        ("max_hxw", 2**31, "must be at most 2147483647"),
        ("cfg", 1.5, "1.5: must be from 0 to 1"),
        ("max_height", 10**30, "must be from 1 to 65536"),
    ],
)
def test_a_number_out_of_range_is_refused_where_it_stands(key, value, message):
    plain = read_json(ROOT / "examples/opensoraplan1.5/data.json").plain()
    plain["dataset_param"]["preprocess_parameters"][key] = value
    with pytest.raises(ConfigError, match=rf"preprocess_parameters\.{key}: .*{re.escape(message)}"):
        build(DataConfig, node_from_python(plain, ""))
