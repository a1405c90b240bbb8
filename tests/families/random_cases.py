"""Random networks and shares, for formulas that must hold for layouts that nobody chose by hand."""

import random
from collections.abc import Sequence

from mindspeed_mm.families.base import Share
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig

Grid = tuple[int, int, int]


def network(
    draw: random.Random, stages: tuple[int, ...], sparsity: int, *, skips: float, heads: int, head_dim: int
) -> SparseUMMDiTConfig:
    """skips: share of the networks that have skip connections."""
    return SparseUMMDiTConfig(
        num_layers=stages,
        sparse_n={3: (1, sparsity, 1), 5: (1, 2, sparsity, 2, 1)}[len(stages)],
        sparse1d=draw.random() < 0.8,
        double_ff=draw.random() < 0.7,
        skip_connection=draw.random() < skips,
        num_heads=heads,
        head_dim=head_dim,
        in_channels=8,
        caption_channels=64,
        pooled_projection_dim=32,
        timestep_embed_dim=32,
    )


def recomputation(draw: random.Random) -> str:
    return draw.choice(["none", "none", "feed-forwards", "blocks"])


def share(
    draw: random.Random, blocks: int, grid: Grid, layout: tuple[int, int], recompute: str, texts: Sequence[int]
) -> Share:
    """blocks: of the network. layout: TP and CP. texts: lengths to choose from."""
    tensor, context = layout
    return Share(
        batch=draw.choice([1, 2]),
        video_tokens=grid[0] * grid[1] * grid[2],
        text_tokens=draw.choice(texts),
        itemsize=draw.choice([2, 4]),
        tensor=tensor,
        context=context,
        sequence_parallel=tensor > 1 and draw.random() < 0.7,
        recompute_blocks=draw.choice([blocks, blocks // 2]) if recompute == "blocks" else 0,
        recompute_feed_forwards=draw.choice([blocks, blocks // 2]) if recompute == "feed-forwards" else 0,
    )
