"""Rewrites model and inference JSONs in MindSpeed-MM's dialect (branch 26.0.0) into ours, before they are typed.

Ours is Open-Sora Plan's. A file may mix both; each network's family reads its own block. Errors keep the path under
which a value was written.
"""

import dataclasses

from mindspeed_mm.schema import Node


def model_node(node: Node) -> Node:
    """A model JSON of a training run (`TrainModelConfig`) in our dialect."""
    return _adapter_beside(unpacked(node, "text_encoder"))


def _adapter_beside(node: Node) -> Node:
    """Moves `predictor.adapter` out of the predictor, whose family knows no adapters."""
    predictor = node.value.get("predictor") if isinstance(node.value, dict) else None
    if predictor is None or not isinstance(predictor.value, dict) or "adapter" not in predictor.value:
        return node
    inner = dict(predictor.value)
    adapter = inner.pop("adapter")
    if "adapter" in node.value:
        raise node.value["adapter"].error(f"also given as {adapter.path!r}")
    value = {**node.value, "predictor": dataclasses.replace(predictor, value=inner), "adapter": adapter}
    return dataclasses.replace(node, value=value)


def sample_node(node: Node) -> Node:
    """An inference JSON (`SampleModelConfig`) in our dialect."""
    node = unpacked(unpacked(node, "text_encoder"), "tokenizer")
    if isinstance(node.value, dict) and "dtype" in node.value and "weight_dtype" not in node.value:
        value = dict(node.value)
        value["weight_dtype"] = value.pop("dtype")
        return dataclasses.replace(node, value=value)
    return node


def unpacked(node: Node, key: str) -> Node:
    """Rewrites `key`: [first, second] as `key`: first, `key`_2: second."""
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
