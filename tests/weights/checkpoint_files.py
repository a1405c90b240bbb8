"""Checkpoints of a tiny denoiser in every layout and dialect, written with torch.save and by the rules of the originals."""

import argparse
import dataclasses
import re
from pathlib import Path

import torch

from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.files import layout
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel.context import ParallelContext

# The blocks of v1.5 as published, so that the names are; widths as small as TP 4 allows.
TINY = SparseUMMDiTConfig(
    num_layers=(2, 4, 6, 8, 6, 4, 2),
    sparse_n=(1, 2, 4, 8, 4, 2, 1),
    sparse1d=True,
    double_ff=True,
    skip_connection=True,
    num_heads=4,
    head_dim=16,
    in_channels=4,
    out_channels=4,
    caption_channels=12,
    pooled_projection_dim=6,
    timestep_embed_dim=16,
)
SMALL = dataclasses.replace(TINY, num_layers=(2, 2, 2), sparse_n=(1, 2, 1))
# From the originals' converters (docs/parity.md), written down again: nothing here comes from our layers.
SPLIT_0 = re.compile(
    r"attn1\.(to_[qkv]|add_[qkv]_proj)\.|ff(_enc)?\.net\.0\.proj\.weight|norm[12]\.linear\.|^norm_out\.linear\."
)
SPLIT_1 = re.compile(r"attn1\.(to_out\.0|to_add_out)\.weight|net\.2\.weight")
TO_MM = [
    (r"norm_added_([qk])\.", r"norm_added_proj_\1."),
    (r"\.norm_([qk])\.", r".norm_proj_\1."),
    (r"\.to_([qkv])\.", r".proj_\1."),
    (r"add_([qkv])_proj\.", r"added_proj_\1."),
    (r"to_out\.0\.", "proj_out."),
    (r"to_add_out\.", "added_proj_out."),
]

Tensors = dict[str, torch.Tensor]


def dim_of(name: str) -> int | None:
    return 0 if SPLIT_0.search(name) else 1 if SPLIT_1.search(name) else None


def last_block(config: SparseUMMDiTConfig) -> str:
    return f"transformer_blocks.{len(config.num_layers) - 1}.{config.num_layers[-1] - 1}"


def whole_weights(seed: int = 0, config: SparseUMMDiTConfig = SMALL, text_tail: bool = False) -> Tensors:
    """Random bf16 values for every parameter; with text_tail also those that Open-Sora Plan's last block has at TP > 1."""
    network = build_denoiser(config, ParallelContext.current(), device="meta", seed=None)
    shapes = {name: value.shape for name, value in network.named_parameters()}
    if text_tail:
        first = "transformer_blocks.0.0."
        tail = re.compile(re.escape(first) + r"(attn1\.to_add_out|norm2\.norm_enc|ff_enc)\.")
        shapes |= {
            name.replace(first, f"{last_block(config)}."): shape for name, shape in shapes.items() if tail.match(name)
        }
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}


def shards_of(whole: Tensors, count: int) -> list[Tensors]:
    """What each of `count` TP ranks holds."""
    return [
        {
            name: value if dim_of(name) is None else value.chunk(count, dim_of(name))[rank].clone()
            for name, value in whole.items()
        }
        for rank in range(count)
    ]


def mm_name(name: str) -> str:
    for ours, theirs in TO_MM:
        renamed = re.sub(ours, theirs, name) if ".attn1." in name else name
        if renamed != name:
            return renamed
    return name


def write_directory(
    root: Path,
    shards: list[dict],
    ema: list[dict] | None = None,
    iteration: int | None = 7,
    rank_suffix: str = "",
    flags: dict | None = None,
) -> Path:
    """A Megatron directory of the given state dicts, as a training run leaves it; a release without iteration."""
    directory = root / "release" if iteration is None else layout.iteration_directory(root, iteration)
    for rank, shard in enumerate(shards):
        state = {"model": shard, "iteration": iteration or 0, "checkpoint_version": 3.0}
        state["args"] = argparse.Namespace(tensor_model_parallel_size=len(shards), **(flags or {}))
        if ema is not None:
            state["ema_model"] = ema[rank]
        file = directory / f"mp_rank_{rank:02d}{rank_suffix}" / layout.MODEL_FILE
        file.parent.mkdir(parents=True)
        torch.save(state, file)
    (root / layout.TRACKER).write_text("release" if iteration is None else str(iteration))
    return root


def same(found: Tensors, wanted: Tensors) -> bool:
    """Bit for bit, dtypes and names included."""
    return found.keys() == wanted.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in wanted.items()
    )


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []
