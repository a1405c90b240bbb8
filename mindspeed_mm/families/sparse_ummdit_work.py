"""Work of SparseUMMDiT in training by formulas over sizes: one rank's operations, moved bytes and collectives.

They follow the eager passes of `models/sparse_ummdit` over megatron-core's linears.
`tests/families/test_sparse_ummdit_work.py` compares them with torch's counter of operations, the bytes of every operator and
the collectives that a rank issues, for random networks and layouts.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mindspeed_mm.families.base import Collective, Parameter, Share, Work
from mindspeed_mm.families.sparse_ummdit_costs import Block, Sizes, attention_flops, blocks, joins_of

if TYPE_CHECKING:  # the config's file imports this one
    from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig

_FP32 = 4  # bytes; the condition is fp32
# Bytes that the operators of a dense block beside its products read and write for one feature of a token, forward and
# backward: counted, since each is a sum over some forty operators. In 16 bit the norms cast to fp32 and back.
_MOVED_VIDEO = {4: (198, 439), 2: (206, 419)}
_MOVED_TEXT = {4: (154, 377), 2: (146, 333)}
_MOVED_ENDS = {4: (32, 39), 2: (51, 71)}  # for a feature of all tokens, outside the blocks


def training_work(config: "SparseUMMDiTConfig", share: Share, parameters: Mapping[str, Parameter]) -> Work:
    """Forward and backward pass of a micro-batch on one rank. parameters: the network's."""
    sizes, again = Sizes.of(config, share), 0
    products, attention = training_flops(config, share)
    for block in blocks(config, share):
        if block.whole:
            again += _block_products(config, share, sizes, block) + _attention(config, share, block)
        elif block.feed_forward:
            again += _feed_forward_products(sizes, block)
    return Work(
        products=products,
        attention=attention,
        again=again,
        moved_bytes=_moved(config, share, sizes, parameters),
        collectives=_collectives(config, share, sizes),
        partial_numbers=_partial(share, parameters),
    )


# ---------------------------------------------------------------------------------------------- floating-point operations


def training_flops(config: "SparseUMMDiTConfig", share: Share) -> tuple[int, dict[int, int]]:
    """Operations of a forward and backward pass: products, and attention by sparsity; without recomputation.

    The backward pass of attention takes two passes. That of a product has one for the gradient of its input, and one for
    the gradient of its weight, which a frozen weight has not.
    """
    sizes = Sizes.of(config, share)
    attention: collections.Counter[int] = collections.Counter()
    passes = 2 if share.frozen else 3
    products = _end_products(config, share, sizes)
    for block in blocks(config, share):
        products += passes * _block_products(config, share, sizes, block)
        attention[block.sparsity] += 3 * _attention(config, share, block)
    for _ in joins_of(config):
        products += passes * 2 * (sizes.video + sizes.text) * 2 * sizes.width**2
    return products, dict(attention)


def _block_products(config: "SparseUMMDiTConfig", share: Share, sizes: Sizes, block: Block) -> int:
    """Forward pass of a block without attention: queries, keys, values, output, modulation, feed-forward."""
    every, out = sizes.wide_video + sizes.wide_text, sizes.wide_video + (0 if block.last else sizes.wide_text)
    attention = 2 * (3 * every + out) * sizes.width * sizes.part
    return attention + 2 * _modulation(config, share, 6) + _feed_forward_products(sizes, block)


def _feed_forward_products(sizes: Sizes, block: Block) -> int:
    tokens = sizes.wide_video + (0 if block.last else sizes.wide_text)
    return 2 * 2 * tokens * sizes.width * 4 * sizes.part


def _modulation(config: "SparseUMMDiTConfig", share: Share, widths: int) -> int:
    return 2 * share.batch * config.timestep_embed_dim * widths * config.hidden_size // share.tensor


def _attention(config: "SparseUMMDiTConfig", share: Share, block: Block) -> int:
    """Forward pass of a block's attention; TP and CP split its heads."""
    whole = attention_flops(share.video_tokens, share.text_tokens, config.hidden_size, block.sparsity)
    return share.batch * whole // (share.tensor * share.context)


def _end_products(config: "SparseUMMDiTConfig", share: Share, sizes: Sizes) -> int:
    """All passes outside the blocks, which every rank computes for all tokens. The data need no gradients."""
    tokens, condition = share.batch * share.video_tokens, config.timestep_embed_dim
    patch = config.patch_size**2
    begin = tokens * sizes.width * patch * (config.in_channels + config.image_channels)
    begin += share.batch * share.text_tokens * config.caption_channels * sizes.width
    begin += share.batch * condition * (config.pooled_projection_dim + condition)
    middle = 2 * share.batch * condition**2
    end = tokens * sizes.width * patch * config.velocity_channels
    last = 2 * end + _modulation(config, share, 2)
    if share.frozen:
        return 2 * begin + 2 * middle + 2 * last
    return 2 * 2 * begin + 3 * 2 * middle + 3 * last


# ------------------------------------------------------------------------------------------------------------ moved bytes


def _moved(config: "SparseUMMDiTConfig", share: Share, sizes: Sizes, parameters: Mapping[str, Parameter]) -> int:
    """Bytes that operators other than products read and write; gradients are added to their fp32 buffers."""
    ranks = share.context * (share.tensor if share.sequence_parallel else 1)
    video = share.batch * share.video_tokens // ranks * sizes.width
    text = share.batch * share.text_tokens // ranks * sizes.width
    forward_video, backward_video = _MOVED_VIDEO[share.itemsize]
    forward_text, backward_text = _MOVED_TEXT[share.itemsize]
    total = share.batch * share.video_tokens * sizes.width * sum(_MOVED_ENDS[share.itemsize])
    for block in blocks(config, share):
        sparse, copies = block.sparsity > 1, block.sparsity - 1
        forward = (forward_video + 5 * share.itemsize * sparse) * video
        forward += (forward_text + (5 + 7 * copies) * share.itemsize * sparse) * text
        # a feed-forward has about two fifths of a block's
        total += int(forward * (2 if block.whole else 1.4 if block.feed_forward else 1))
        total += (backward_video + 3 * share.itemsize * sparse) * video
        total += (backward_text + (5 + 5 * copies) * share.itemsize * sparse) * text
        if share.context > 1:  # what moves between tokens and heads is copied before and after
            total += 2 * 2 * 4 * 2 * share.itemsize * (video + text)
    if not share.frozen:
        total += (share.itemsize + 2 * _FP32) * _numbers(share, parameters.values())
    return total


def _numbers(share: Share, parameters) -> int:
    return sum(_local(share, parameter) for parameter in parameters)


def _local(share: Share, parameter: Parameter) -> int:
    """Numbers of a parameter on one TP rank."""
    count = 1
    for size in parameter.shape:
        count *= size
    return count // (1 if parameter.dim is None else share.tensor)


def _partial(share: Share, parameters: Mapping[str, Parameter]) -> int:
    """See `SparseUMMDiT.partial_gradients`: head norms; under sequence parallel all that is whole between split linears."""
    if share.tensor == 1 or share.frozen:
        return 0
    total = 0
    for parameter in (value for value in parameters.values() if value.dim is None):
        is_head_norm = parameter.kind == "attention" and parameter.shape == _head(parameters)
        between = share.sequence_parallel and parameter.kind in ("norm", "skip", "attention")
        total += _local(share, parameter) if is_head_norm or between else 0
    return total


def _head(parameters: Mapping[str, Parameter]) -> tuple[int, ...]:
    return parameters["transformer_blocks.0.0.attn1.norm_q.weight"].shape


# ------------------------------------------------------------------------------------------------------------ collectives


@dataclasses.dataclass(frozen=True, slots=True)
class _Buffers:
    """Bytes of the tensors that a block exchanges."""

    video: int  # tokens that the split linears see
    text: int
    video_heads: int  # this rank's features of the same
    text_heads: int


def _collectives(config: "SparseUMMDiTConfig", share: Share, sizes: Sizes) -> tuple[Collective, ...]:
    """Every exchange of a micro-batch."""
    item = share.itemsize
    buffers = _Buffers(
        sizes.wide_video * sizes.width * item,
        sizes.wide_text * sizes.width * item,
        sizes.wide_video * sizes.part * item,
        sizes.wide_text * sizes.part * item,
    )
    found: collections.Counter[Collective] = collections.Counter()
    for block in blocks(config, share):
        passes = [_forward(config, share, buffers, block), _backward(config, share, buffers, block)]
        if block.whole:
            passes.append(_forward(config, share, buffers, block))
        elif block.feed_forward:
            passes.append(_feed_forward(config, share, buffers, block))
        for one in passes:
            found.update(one)
    found.update(_ends(config, share, buffers))
    return tuple(dataclasses.replace(one, count=count) for one, count in found.items())


def _forward(config: "SparseUMMDiTConfig", share: Share, buffers: _Buffers, block: Block) -> Iterator[Collective]:
    for _ in range(2):
        yield from _condition(config, share, 6)
    streams = [buffers.video, buffers.text]
    for size in streams:
        yield from _into_columns(share, size)
    yield from _heads(share, buffers, block)
    for size in streams[:1] if block.last else streams:
        yield from _out_of_rows(share, size)
    yield from _feed_forward(config, share, buffers, block)


def _feed_forward(config: "SparseUMMDiTConfig", share: Share, buffers: _Buffers, block: Block) -> Iterator[Collective]:
    for size in _fed(config, buffers, block):
        yield from _into_columns(share, size)
        yield from _out_of_rows(share, size)


def _backward(config: "SparseUMMDiTConfig", share: Share, buffers: _Buffers, block: Block) -> Iterator[Collective]:
    streams = [buffers.video, buffers.text]
    yield from _heads(share, buffers, block)
    for size in _fed(config, buffers, block):
        yield from _rows_backward(share, size)
        yield from _columns_backward(share, size)
    for size in streams[:1] if block.last else streams:
        yield from _rows_backward(share, size)
    for size in streams:
        yield from _columns_backward(share, size)
    for _ in range(2):
        yield from _condition_backward(config, share, 6)


def _fed(config: "SparseUMMDiTConfig", buffers: _Buffers, block: Block) -> list[int]:
    """Bytes of the inputs of a block's feed-forwards: without one for the text, both streams are joined."""
    if block.last:
        return [buffers.video]
    return [buffers.video, buffers.text] if config.double_ff else [buffers.video + buffers.text]


def _heads(share: Share, buffers: _Buffers, block: Block) -> Iterator[Collective]:
    """Ulysses: queries, keys and values of both streams, then the results."""
    if share.context > 1:
        for size, results in ((buffers.video_heads, 1), (buffers.text_heads, 0 if block.last else 1)):
            for _ in range(3 + results):
                yield Collective("all-to-all", "context", size)


def _into_columns(share: Share, size: int) -> Iterator[Collective]:
    if share.sequence_parallel:
        yield Collective("all-gather", "tensor", size)


def _out_of_rows(share: Share, size: int) -> Iterator[Collective]:
    if share.tensor > 1:
        yield Collective("reduce-scatter" if share.sequence_parallel else "all-reduce", "tensor", size)


def _rows_backward(share: Share, size: int) -> Iterator[Collective]:
    if share.sequence_parallel:
        yield Collective("all-gather", "tensor", size)


def _columns_backward(share: Share, size: int) -> Iterator[Collective]:
    """With trained weights the input is gathered again beside one product, and its gradient scattered beside another."""
    if share.tensor > 1 and not share.sequence_parallel:
        yield Collective("all-reduce", "tensor", size, beside_products=not share.frozen)
    if share.sequence_parallel:
        if not share.frozen:
            yield Collective("all-gather", "tensor", size, beside_products=True)
        yield Collective("reduce-scatter", "tensor", size, beside_products=not share.frozen)


def _condition(config: "SparseUMMDiTConfig", share: Share, widths: int) -> Iterator[Collective]:
    if share.tensor > 1:
        yield Collective("all-gather", "tensor", share.batch * widths * config.hidden_size * _FP32)


def _condition_backward(config: "SparseUMMDiTConfig", share: Share, widths: int) -> Iterator[Collective]:
    if share.sequence_parallel and not share.frozen:
        yield Collective("reduce-scatter", "tensor", share.batch * widths * config.hidden_size * _FP32)


def _ends(config: "SparseUMMDiTConfig", share: Share, buffers: _Buffers) -> Iterator[Collective]:
    """Tokens are split before the first block and joined after the last one; the last norm has a condition, too."""
    yield from _condition(config, share, 2)
    yield from _condition_backward(config, share, 2)
    if share.tensor > 1 and not share.frozen:
        yield Collective("all-reduce", "tensor", share.batch * config.timestep_embed_dim * _FP32)
    if share.sequence_parallel:
        yield Collective("all-gather", "tensor", buffers.video)
    if share.context > 1:
        yield Collective("all-gather", "context", buffers.video * share.context)
    if share.frozen:
        return
    for size in (buffers.video, buffers.text):
        if share.sequence_parallel:
            yield Collective("all-gather", "tensor", size)
        if share.context > 1:
            yield Collective("all-gather", "context", size * share.context)
