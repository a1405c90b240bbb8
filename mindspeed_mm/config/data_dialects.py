"""Rewrites a data.json in MindSpeed-MM's dialect (branch 26.0.0) into ours, before it is typed.

Ours is Open-Sora Plan's. `video_processor_type` marks a MindSpeed-MM file: missing keys then have that class's
defaults. Errors keep the path under which a value was written.
"""

import dataclasses

from mindspeed_mm.config.model_dialects import unpacked
from mindspeed_mm.schema import Node, node_from_python

# Defaults of MindSpeed-MM's video processor where they differ from Open-Sora Plan's.
_DEFAULTS = {"vae_scale_factor": [4, 8, 8], "hw_stride": 32, "hw_aspect_thr": 1.5}


def data_node(node: Node) -> Node:
    """A data JSON (`DataConfig`) in our dialect."""
    return _inside(node, "dataset_param", _dataset)


def _dataset(node: Node) -> Node:
    return _inside(_tokenizers(node), "preprocess_parameters", _preprocess)


def _tokenizers(node: Node) -> Node:
    """Turns a list of tokenizers, each with its length, into two keys; the first length applies to the captions."""
    if not isinstance(getattr(node.value.get("tokenizer_config"), "value", None), list):
        return node
    value = dict(unpacked(node, "tokenizer_config").value)
    first = value["tokenizer_config"]
    length = first.value.get("model_max_length") if isinstance(first.value, dict) else None
    if length is not None:
        given = value.setdefault("model_max_length", length)
        if given.value != length.value:
            raise given.error(f"{given.value}, but {length.path} is {length.value}; give one of them")
    return dataclasses.replace(node, value=value)


def _preprocess(node: Node) -> Node:
    value = dict(node.value)
    if "video_processor_type" in value:
        for key, default in _DEFAULTS.items():
            if key not in value or (key == "hw_aspect_thr" and value[key].value == 0):  # there 0 means the default
                value[key] = dataclasses.replace(node_from_python(default, f"{node.path}.{key}"), file=node.file)
    if "hw_aspect_thr" in value:
        for key in ("max_h_div_w_ratio", "min_h_div_w_ratio"):
            if key in value:
                raise value[key].error("hw_aspect_thr limits the aspect ratio already; give one of them")
    strides = value.get("vae_scale_factor")
    if strides is not None and isinstance(strides.value, list) and strides.value:
        given = value.setdefault("ae_stride_t", strides.value[0])
        if given.value != strides.value[0].value:
            raise given.error(f"{given.value}, but {strides.path} is {strides.plain()}; give one of them")
    return _inside(dataclasses.replace(node, value=value), "train_pipeline", _pipeline)


def _pipeline(node: Node) -> Node:
    value = {kind: _each(steps, lambda step: _inside(step, "param", _sizes)) for kind, steps in node.value.items()}
    return dataclasses.replace(node, value=value)


def _sizes(node: Node) -> Node:
    """`transform_size`: {max_height, max_width} -> `size`: [height, width]; {max_hxw} -> `max_hxw`."""
    value = dict(node.value)
    sizes = value.pop("transform_size", None)
    if sizes is None or not isinstance(sizes.value, dict):
        return node
    height, width, pixels = (sizes.value.get(key) for key in ("max_height", "max_width", "max_hxw"))
    if height is not None and width is not None:
        value.setdefault("size", dataclasses.replace(sizes, value=[height, width]))
    elif pixels is not None:
        value.setdefault("max_hxw", pixels)
    else:
        raise sizes.error(f"expected max_height and max_width, or max_hxw; found {', '.join(sizes.value) or 'nothing'}")
    return dataclasses.replace(node, value=value)


def _inside(node: Node, key: str, rewrite) -> Node:
    """The node with the object under `key` rewritten, if present."""
    if not isinstance(node.value, dict) or not isinstance(getattr(node.value.get(key), "value", None), dict):
        return node
    return dataclasses.replace(node, value={**node.value, key: rewrite(node.value[key])})


def _each(node: Node, rewrite) -> Node:
    if not isinstance(node.value, list):
        return node
    return dataclasses.replace(node, value=[rewrite(item) for item in node.value])
