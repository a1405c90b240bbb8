"""Model and inference JSONs in MindSpeed-MM's dialect (branch 26.0.0), rewritten into ours before they are typed.

Ours is Open-Sora Plan's. A file may mix both. Errors keep the path under which a value was written.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from mindspeed_mm.config.model import AutoencoderConfig, DenoiserConfig
from mindspeed_mm.schema import Node, build, read_json

# Values that have another name there: block -> key -> theirs -> ours.
_VALUES = {
    "predictor": {"norm_cls": {"fp32_layer_norm": "layer_norm"}},
    "ae": {"norm_type": {"aelayernorm": "layernorm"}},
}


def model_node(node: Node) -> Node:
    """A model JSON of a training run (`TrainModelConfig`) in our dialect."""
    return _blocks(unpacked(node, "text_encoder"))


def sample_node(node: Node) -> Node:
    """An inference JSON (`SampleModelConfig`) in our dialect."""
    node = _blocks(unpacked(unpacked(node, "text_encoder"), "tokenizer"))
    if isinstance(node.value, dict) and "dtype" in node.value and "weight_dtype" not in node.value:
        value = dict(node.value)
        value["weight_dtype"] = value.pop("dtype")
        return dataclasses.replace(node, value=value)
    return node


def predictor_node(node: Node) -> Node:
    """A `predictor` block (`DenoiserConfig`) in our dialect."""
    return _patch_sizes(_renamed(node, _VALUES["predictor"]))


def ae_node(node: Node) -> Node:
    """An `ae` block (`AutoencoderConfig`) in our dialect."""
    return _with_statistics(_renamed(node, _VALUES["ae"]))


def statistics(shift: Sequence[float], scale: Sequence[float]) -> dict[str, list[float]]:
    """Content of the file that `ae.statistics` names: mean and 1 / deviation of each latent channel, six digits."""
    return {name: [float(f"{x:.6g}") for x in vector] for name, vector in (("shift", shift), ("scale", scale))}


def _with_statistics(node: Node) -> Node:
    """`statistics`: a file -> the `shift` and `scale` that it holds."""
    if not isinstance(node.value, dict) or "statistics" not in node.value:
        return node
    value = dict(node.value)
    named = value.pop("statistics")
    if not isinstance(named.value, str) or not os.path.isfile(named.value):
        raise named.error(f"{named.plain()}: no such file; tools/eval_vae.py --write-statistics makes it")
    found = read_json(named.value)
    if not isinstance(found.value, dict) or set(found.value) != {"shift", "scale"}:
        raise found.error("expected an object with shift and scale, as tools/eval_vae.py --write-statistics writes it")
    for name, vector in found.value.items():
        if name in value:
            raise value[name].error(f"{named.path} gives it already; give one of them")
        value[name] = vector
    return dataclasses.replace(node, value=value)


def network_config(path: str | Path, block: str = "predictor") -> DenoiserConfig | AutoencoderConfig:
    """The denoiser ("predictor") or the autoencoder ("ae") of a model or inference JSON, or of such a block alone."""
    node = read_json(path)
    cls, ours = {"predictor": (DenoiserConfig, predictor_node), "ae": (AutoencoderConfig, ae_node)}[block]
    if isinstance(node.value, dict) and block in node.value:
        node = node.value[block]
    return build(cls, ours(node))


def _blocks(node: Node) -> Node:
    if not isinstance(node.value, dict):
        return node
    value = dict(node.value)
    for name, rewrite in (("predictor", predictor_node), ("ae", ae_node)):
        if name in value:
            value[name] = rewrite(value[name])
    return dataclasses.replace(node, value=value)


def unpacked(node: Node, key: str) -> Node:
    """`key`: [first, second] -> `key`: first, `key`_2: second."""
    if not isinstance(node.value, dict) or not isinstance(getattr(node.value.get(key), "value", None), list):
        return node
    value = dict(node.value)
    items = value.pop(key).value
    names = (key, f"{key}_2")
    if not 1 <= len(items) <= len(names):
        raise node.value[key].error(f"{len(items)} entries; expected one for T5 and one for CLIP")
    for name, item in zip(names, items, strict=False):
        if name in value:
            raise value[name].error(f"also given as {item.path!r}")
        value[name] = item
    return dataclasses.replace(node, value=value)


def _renamed(node: Node, values: dict[str, dict[str, str]]) -> Node:
    if not isinstance(node.value, dict):
        return node
    value = dict(node.value)
    for key, names in values.items():
        if key in value and isinstance(value[key].value, str):
            value[key] = dataclasses.replace(value[key], value=names.get(value[key].value, value[key].value))
    return dataclasses.replace(node, value=value)


def _patch_sizes(node: Node) -> Node:
    """`patch_size_thw`: [t, h, w] -> `patch_size_t`, `patch_size`."""
    if not isinstance(node.value, dict) or "patch_size_thw" not in node.value:
        return node
    value = dict(node.value)
    sizes = value.pop("patch_size_thw")
    if not isinstance(sizes.value, list) or len(sizes.value) != 3:
        raise sizes.error("expected 3 values: time, height, width")
    time, height, width = sizes.value
    if height.value != width.value:
        raise sizes.error(f"{sizes.plain()}: height and width must be equal")
    for name, size in (("patch_size_t", time), ("patch_size", height)):
        if name in value:
            raise value[name].error(f"also given as {sizes.path!r}")
        value[name] = size
    return dataclasses.replace(node, value=value)
