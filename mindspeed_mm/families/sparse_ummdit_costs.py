"""Costs of SparseUMMDiT by formulas over sizes: operations of a forward pass, memory of sampling and of training.

The formulas of training follow the eager forward and backward pass of `models/sparse_ummdit`: each term is a tensor that
some operator keeps for its backward pass. `tests/families/test_sparse_ummdit_costs.py` counts the tensors of real steps
and compares. torch.compile keeps less.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mindspeed_mm.families.base import Share

if TYPE_CHECKING:  # the config's file imports this one
    from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig

_FP32 = 4  # bytes


def forward_flops(config: "SparseUMMDiTConfig", extent: tuple[int, int, int], text_tokens: int) -> int:
    """Floating-point operations of one sample's forward pass; extent: (t, h, w) in patches.

    A matrix product of [m,k] and [k,n] counts 2mkn; norms, activations, RoPE and softmax are left out, as in every such
    count. Per block, with S video tokens, L text tokens, width D, condition width C and sparsity k:
        queries, keys, values    3 * 2 (S + L) D^2
        attention                2 * 2 k (S'/k + L)^2 D     k parts of S'/k video tokens (S' = S padded to k^2), each with the text
        output projections       2 (S + L) D^2
        feed-forward             2 * 2 (S + L) D 4D
        modulation               2 * 2 C 6D                 once per sample
    Without text output the last block has neither its projection nor its feed-forward. A training step takes three times a
    forward pass (the backward pass has two products for each of its one); recomputation comes on top and is not counted.
    """
    video_tokens, width, condition = math.prod(extent), config.hidden_size, config.timestep_embed_dim
    channels = config.in_channels + config.image_channels + config.velocity_channels
    total = 2 * video_tokens * width * config.patch_size**2 * channels
    total += 2 * text_tokens * config.caption_channels * width
    total += 2 * condition * (config.pooled_projection_dim + 3 * condition)
    total += 2 * condition * 2 * width
    for sparsity, count in zip(config.sparsities, config.num_layers, strict=True):
        total += count * attention_flops(video_tokens, text_tokens, width, sparsity)
    per_block = (3 + 1 + 8) * 2 * (video_tokens + text_tokens) * width**2 + 2 * 2 * condition * 6 * width
    total += sum(config.num_layers) * per_block
    total -= (1 + 8) * 2 * text_tokens * width**2  # the text tail that the last block lacks
    if config.skip_connection:
        total += len(config.num_layers) // 2 * 2 * (video_tokens + text_tokens) * 2 * width * width
    return total


def attention_flops(video_tokens: int, text_tokens: int, width: int, sparsity: int) -> int:
    """Operations of attention in one block, for one sample, without its projections."""
    padded = video_tokens + -video_tokens % sparsity**2
    part = padded // sparsity + text_tokens
    return 4 * sparsity * part**2 * width


def activation_bytes(
    config: "SparseUMMDiTConfig", extent: tuple[int, int, int], text_tokens: int, *, itemsize: int, ranks: int
) -> int:
    """See `ActivationBytes`.

    The peak is either in the feed-forward, whose activations are four times as wide and fp32 in GELU, or in the
    sparsest attention, where each part of the video has its own copy of the text. The U's skip connections are held
    meanwhile.
    """
    tokens = math.prod(extent) + max(config.sparsities) * text_tokens
    skips = len(config.num_layers) // 2
    return tokens // ranks * config.hidden_size * (60 + (4 + skips) * itemsize)


# ---------------------------------------------------------------------------------------- training


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens and widths of one rank, for all samples of a micro-batch."""

    video: int  # tokens between the split linears
    text: int
    wide_video: int  # tokens inside the split linears, where sequence parallel has gathered them
    wide_text: int
    width: int  # features of a token
    part: int  # features of a token inside the split linears
    heads: int  # heads inside the split linears
    attended: int  # features of a token in attention, where CP splits the heads too

    @classmethod
    def of(cls, config: "SparseUMMDiTConfig", share: Share) -> "Sizes":
        wide_video = share.batch * share.video_tokens // share.context
        wide_text = share.batch * share.text_tokens // share.context
        split = share.tensor if share.sequence_parallel else 1
        return cls(
            video=wide_video // split,
            text=wide_text // split,
            wide_video=wide_video,
            wide_text=wide_text,
            width=config.hidden_size,
            part=config.hidden_size // share.tensor,
            heads=config.num_heads // share.tensor,
            attended=config.hidden_size // (share.tensor * share.context),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One block: its stage, its sparsity, its recomputation."""

    stage: int
    sparsity: int
    last: bool  # the last block has no text output
    whole: bool  # recomputed as a whole
    feed_forward: bool  # only its feed-forward is recomputed
    on_host: bool  # recomputed, and its inputs wait on the host


def kept_bytes(config: "SparseUMMDiTConfig", share: Share) -> dict[str, int]:
    """Bytes that a forward pass keeps for the backward pass, by stage; "ends" is all outside the stages."""
    sizes = Sizes.of(config, share)
    kept = {f"stage {stage}": 0 for stage in range(len(config.num_layers))}
    for block in blocks(config, share):
        kept[f"stage {block.stage}"] += 0 if block.on_host else _kept(config, share, sizes, block)
    for stage in joins_of(config):
        kept[f"stage {stage}"] += _both_streams(share, sizes, 2)
    kept["ends"] = _beginning(config, share) + _end(config, share, sizes)
    return kept


def peak_bytes(config: "SparseUMMDiTConfig", share: Share) -> int:
    """Most bytes that forward and backward pass of a micro-batch hold at once, beside weights and their gradients.

    The peak is in the backward pass, which starts at the last norms. In a block it is at the second product of the
    feed-forward or at the norm before it. What the blocks before it keep, and the gradients that wait for the long
    skips, are held meanwhile.
    """
    sizes = Sizes.of(config, share)
    middle, joins = len(config.num_layers) // 2, joins_of(config)
    held, peak, stage, coming = _beginning(config, share), 0, 0, 0
    for block in blocks(config, share):
        if block.stage != stage:
            stage = block.stage
            held += _both_streams(share, sizes, 2) if stage in joins else 0
        mine = _kept(config, share, sizes, block)
        # A skip's gradient waits from its join in the second half to its stage in the first.
        waiting = min(len(config.num_layers) - 1 - stage, stage + 1, middle) if joins else 0
        gradients = _both_streams(share, sizes, 2 * waiting)
        peak = max(peak, held + coming + mine + gradients + _backward(config, share, sizes, block))
        half = _both_streams(share, sizes, 1) + (0 if block.whole else _attention(config, share, sizes, block))
        peak = max(peak, held + coming + half + gradients + _norm_backward(share, sizes))
        held += 0 if block.on_host else mine
        coming = mine if block.on_host else 0  # it comes back during the backward pass of the next block
    norms = sizes.video * sizes.width * (_FP32 + share.itemsize)
    # the gradient of this rank's tokens is a view of all ranks'
    return max(
        peak, held + norms + _norm_backward(share, sizes) + _whole_video(share, sizes) - _own_video(share, sizes)
    )


def blocks(config: "SparseUMMDiTConfig", share: Share) -> Iterator[Block]:
    total, number = sum(config.num_layers), 0
    for stage, (sparsity, count) in enumerate(zip(config.sparsities, config.num_layers, strict=True)):
        for _ in range(count):
            number += 1
            whole = number <= share.recompute_blocks
            feed_forward = not whole and number <= share.recompute_feed_forwards
            yield Block(
                stage, sparsity, number == total, whole, feed_forward, whole and number <= share.offloaded_blocks
            )


def joins_of(config: "SparseUMMDiTConfig") -> range:
    """Stages that a long skip enters."""
    middle = len(config.num_layers) // 2
    return range(middle + 1, len(config.num_layers)) if config.skip_connection else range(0)


def _both_streams(share: Share, sizes: Sizes, widths: int) -> int:
    """Bytes of `widths` tensors as wide as a token, for video and text."""
    return widths * (sizes.video + sizes.text) * sizes.width * share.itemsize


def _whole_video(share: Share, sizes: Sizes) -> int:
    """Bytes of a tensor as wide as a token, for the tokens of all ranks."""
    return share.batch * share.video_tokens * sizes.width * share.itemsize


def _own_video(share: Share, sizes: Sizes) -> int:
    """The same, for this rank's tokens."""
    return sizes.video * sizes.width * share.itemsize


def _beginning(config: "SparseUMMDiTConfig", share: Share) -> int:
    """RoPE's two tables, the latent and the text features."""
    rope = 2 * share.video_tokens * config.head_dim * _FP32
    channels = config.in_channels + config.image_channels
    latent = share.batch * share.video_tokens * config.patch_size**2 * channels * share.itemsize
    return rope + latent + share.batch * share.text_tokens * config.caption_channels * share.itemsize


def _end(config: "SparseUMMDiTConfig", share: Share, sizes: Sizes) -> int:
    """The last norms, the output projection and its result."""
    norms = sizes.video * sizes.width * (_FP32 + share.itemsize)
    gathered = _whole_video(share, sizes)  # the projection takes the tokens of all ranks
    outputs = share.batch * share.video_tokens * config.patch_size**2 * config.velocity_channels
    return norms + gathered + 2 * outputs * share.itemsize


def _kept(config: "SparseUMMDiTConfig", share: Share, sizes: Sizes, block: Block) -> int:
    """Bytes that a block keeps."""
    if block.whole:
        return _both_streams(share, sizes, 1)  # its inputs
    attention = _attention(config, share, sizes, block)
    if block.feed_forward:
        return attention + _both_streams(share, sizes, 1)
    return attention + _feed_forward(config, share, sizes, block)


def _attention(config: "SparseUMMDiTConfig", share: Share, sizes: Sizes, block: Block) -> int:
    """First half of a block: modulated norm, queries, keys and values, attention, output projection, gate."""
    features = sizes.video * sizes.width  # the input; the normed video is computed again
    features += 2 * sizes.text * sizes.width  # the input and the normed text
    # With TP one product makes queries, keys and values, so the values live as long as the others. CP copies them.
    made = 3 if share.tensor > 1 and share.context == 1 else 2
    features += made * (sizes.wide_video + sizes.wide_text) * sizes.part
    if share.tensor > 1:
        features += 2 * 3 * sizes.width * sizes.part  # their weights, joined for that product
    padded = share.video_tokens + -share.video_tokens % block.sparsity**2
    joint = share.batch * (padded + block.sparsity * share.text_tokens)
    features += 4 * joint * sizes.attended  # queries, keys, values and result
    if block.sparsity > 1 or share.context > 1:
        # the result in the old order, input of the output projections; without Skiparse it is a view
        features += (sizes.wide_video + (0 if block.last else sizes.wide_text)) * sizes.part
    features += (sizes.video + (0 if block.last else sizes.text)) * sizes.width  # what the gates scale
    numbers = 2 * (sizes.video + sizes.text)  # mean and scale of the norms
    numbers += 2 * (sizes.wide_video + sizes.wide_text) * sizes.heads  # scale of the head norms
    numbers += joint * sizes.attended // config.head_dim  # log-sum-exp of attention
    numbers += share.batch * 6 * sizes.width  # modulation
    return features * share.itemsize + numbers * _FP32


def _feed_forward(config: "SparseUMMDiTConfig", share: Share, sizes: Sizes, block: Block) -> int:
    """Second half of a block; GELU's output and the normed video are computed again."""
    own_text_path = config.double_ff and not block.last
    features = sizes.video * sizes.width + (0 if block.last else sizes.text * sizes.width)  # the input
    features += (sizes.video + (0 if block.last else sizes.text)) * sizes.width  # what the gates scale
    features += 4 * sizes.wide_video * sizes.part  # input of GELU
    if not block.last:
        features += 4 * sizes.wide_text * sizes.part + sizes.text * sizes.width  # and the text before its first product
    if not (config.double_ff or block.last):
        features += sizes.video * sizes.width  # one feed-forward takes both, joined
    numbers = 2 * (sizes.video + (sizes.text if own_text_path else 0)) + share.batch * 6 * sizes.width
    return features * share.itemsize + numbers * _FP32


def _norm_backward(share: Share, sizes: Sizes) -> int:
    """Bytes that the backward pass of a modulated norm needs: its gradient, and fp32 tensors as wide as the video.

    One sample's norm is a single kernel, which makes one; more samples need the normed video and a product, too. In
    16 bit the input and its gradient are cast.
    """
    wide = (1 if share.batch == 1 else 3) + (2 if share.itemsize < _FP32 else 0)
    return sizes.video * sizes.width * (share.itemsize + wide * _FP32)


def _backward(config: "SparseUMMDiTConfig", share: Share, sizes: Sizes, block: Block) -> int:
    """Most bytes that a block's backward pass holds beside what the block has kept."""
    own_text_path = config.double_ff and not block.last
    joined = not (config.double_ff or block.last)
    rows = sizes.video + (sizes.text if joined else 0)
    inner = 4 * (sizes.wide_video + (sizes.wide_text if joined else 0)) * sizes.part
    text_inner = 4 * sizes.wide_text * sizes.part if own_text_path else 0
    features = inner  # GELU's output, computed again
    numbers = 0
    if block.whole or block.feed_forward:
        numbers += _feed_forward(config, share, sizes, block)  # and its text path's GELU
        features += (0 if joined else sizes.video * sizes.width) + text_inner
    if block.whole:
        numbers += _attention(config, share, sizes, block)
    # The text's feed-forward comes first in the backward pass; what it kept is free by now.
    features -= text_inner * (2 if block.whole or block.feed_forward else 1) + (
        sizes.text * sizes.width if own_text_path else 0
    )
    features += inner  # gradient of GELU's output
    features += rows * sizes.width  # gradients of the block's output and of the product, less the freed result
    features += 0 if joined else sizes.text * sizes.width
    features += 4 * sizes.width * sizes.part  # gradient of the second product's weight
    if share.sequence_parallel:
        features += inner // (4 * sizes.part) * sizes.width  # the gathered gradient
    return features * share.itemsize + numbers
