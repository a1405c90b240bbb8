"""Arithmetic of the denoiser: floating-point operations of a forward pass, from its config alone.

A matrix product of [m,k] and [k,n] counts 2mkn; norms, activations, RoPE and softmax are left out, as in every such count.
Per block, with S video tokens, L text tokens, width D, condition width C and sparsity k:
    queries, keys, values    3 * 2 (S + L) D^2
    attention                2 * 2 k (S'/k + L)^2 D     k parts of S'/k video tokens (S' = S padded to k^2), each with the text
    output projections       2 (S + L) D^2
    feed-forward             2 * 2 (S + L) D 4D
    modulation               2 * 2 C 6D                 once per sample
Without text output the last block has neither its projection nor its feed-forward. A training step takes three times a
forward pass (the backward pass has two products for each of its one); recomputation comes on top and is not counted.
"""

import math

from mindspeed_mm.config.model import DenoiserConfig
from mindspeed_mm.ops.skiparse import padding


def forward_flops(config: DenoiserConfig, extent: tuple[int, int, int], text_tokens: int) -> int:
    """Operations of one sample's forward pass; extent: (t, h, w) in patches."""
    video_tokens, width, condition = math.prod(extent), config.hidden_size, config.timestep_embed_dim
    patch = config.patch_size**2
    total = 2 * video_tokens * width * patch * (config.in_channels + config.velocity_channels)
    total += 2 * text_tokens * config.caption_channels * width
    total += 2 * condition * (config.pooled_projection_dim + 3 * condition)
    total += 2 * condition * 2 * width
    blocks = sum(config.num_layers)
    for sparsity, count in zip(config.sparsities, config.num_layers, strict=True):
        total += count * attention_flops(video_tokens, text_tokens, width, sparsity)
    for _ in range(blocks):
        total += (3 + 1 + 8) * 2 * (video_tokens + text_tokens) * width**2 + 2 * 2 * condition * 6 * width
    total -= (1 + 8) * 2 * text_tokens * width**2  # the text tail that the last block does not have
    if config.skip_connection:
        total += len(config.num_layers) // 2 * 2 * (video_tokens + text_tokens) * 2 * width * width
    return total


def attention_flops(video_tokens: int, text_tokens: int, width: int, sparsity: int) -> int:
    """Operations of one block's attention itself, for one sample."""
    part = (video_tokens + padding(video_tokens, sparsity)) // sparsity + text_tokens
    return 4 * sparsity * part**2 * width


def training_flops(config: DenoiserConfig, extent: tuple[int, int, int], text_tokens: int) -> int:
    """Operations of one sample's forward and backward pass."""
    return 3 * forward_flops(config, extent, text_tokens)
