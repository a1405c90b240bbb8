"""The kinds of JSON files that the programs read, told apart by their content."""

import dataclasses
from collections.abc import Callable

from mindspeed_mm.config import data_dialects, model_dialects
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.config.tool import ToolConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import Node


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: its dataclass, how its dialects become ours, and a key that no other kind has."""

    name: str
    config: type
    ours: Callable[[Node], Node]
    mark: str


KINDS = (
    Kind("data", DataConfig, data_dialects.data_node, "dataset_param"),
    Kind("sample", SampleModelConfig, model_dialects.sample_node, "pipeline_config"),
    Kind("model", TrainModelConfig, model_dialects.model_node, "predictor"),  # a sample's file has this key as well
    Kind("tool", ToolConfig, lambda node: node, "profile"),
)


def kind_of(node: Node) -> Kind:
    """The kind of a file. Raises ConfigError if it is none."""
    keys = node.value if isinstance(node.value, dict) else {}
    for kind in KINDS:
        if kind.mark in keys:
            return kind
    marks = ", ".join(f"{kind.mark} ({kind.name})" for kind in KINDS)
    raise ConfigError(f"{node.file}: is no config of a program: it has none of the keys {marks}")
