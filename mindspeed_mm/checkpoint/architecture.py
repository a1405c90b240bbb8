"""What a denoiser's weights say about the config that they were trained with."""

import math
import re
from collections.abc import Callable, Iterable

Shape = tuple[int, ...]


def describe(names: Iterable[str], shape_of: Callable[[str], Shape]) -> dict[str, object]:
    """Keys of the `predictor` block that follow from names and shapes, with their values.

    Not all do: the sparsities, for example, leave no trace. Empty if these are no SparseUMMDiT's weights.
    """
    names = set(names)
    needed = {"patch_embed.proj.weight", "caption_projection.weight", "proj_out.weight", "norm_final.weight"}
    head_norm = "transformer_blocks.0.0.attn1.norm_q.weight"
    pooled, condition = "time_text_embed.text_embedder.linear_1.weight", "norm_out.linear.weight"
    if not {*needed, head_norm, pooled, condition} <= names:
        return {}
    width, channels, patch, _ = shape_of("patch_embed.proj.weight")
    head_dim = shape_of(head_norm)[0]
    return {
        "num_layers": _blocks(names),
        "num_heads": width // head_dim,
        "head_dim": head_dim,
        "in_channels": channels,
        "out_channels": shape_of("proj_out.weight")[0] // patch**2,
        "patch_size": patch,
        "caption_channels": shape_of("caption_projection.weight")[1],
        "pooled_projection_dim": shape_of(pooled)[1],
        "timestep_embed_dim": shape_of(condition)[1],
        "double_ff": "transformer_blocks.0.0.ff_enc.net.2.weight" in names,
        "skip_connection": "skip_norm_linear.0.1.weight" in names,
        "skip_connection_zero_init": "skip_norm_linear.0.0.weight" not in names,
        "attention_bias": "transformer_blocks.0.0.attn1.to_q.bias" in names,
        "norm_cls": "layer_norm" if "norm_final.bias" in names else "rms_norm",
    }


def differences(described: dict[str, object], config: object) -> str:
    """Where a config disagrees with its weights: "num_layers (2, 4, 2) of the weights, (2, 2, 2) of the config"."""
    if not described:
        return ""
    mine = {key: getattr(config, key) for key in described}
    if mine["out_channels"] is None:
        mine["out_channels"] = mine["in_channels"]
    if not described["skip_connection"] or not mine["skip_connection"]:
        mine["skip_connection_zero_init"] = described["skip_connection_zero_init"]
    return "; ".join(
        f"{key} is {value} by the weights, {mine[key]} in the config"
        for key, value in described.items()
        if value != mine[key]
    )


def parameters(names: Iterable[str], shape_of: Callable[[str], Shape]) -> int:
    return sum(math.prod(shape_of(name)) for name in names)


def _blocks(names: set[str]) -> tuple[int, ...]:
    """Blocks per stage."""
    found = {(int(match[1]), int(match[2])) for name in names if (match := re.match(_BLOCK, name))}
    return tuple(sum(stage == index for stage, _ in found) for index in range(1 + max(stage for stage, _ in found)))


_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(\d+)\.")
