"""Where a pass of WFVAE cuts a clip: chunks of time and tiles of frames, by sizes alone."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the config's file imports this one
    from mindspeed_mm.families.wfvae import WFVAEConfig


class Span(NamedTuple):
    """Frames (or latent frames) [start, stop) of a clip, and the number of extra frames to read after `stop`."""

    start: int
    stop: int
    lookahead: int = 0


def chunk_sizes(frames: int, stride_t: int) -> tuple[int, int] | None:
    """Frames per encoder chunk and latent frames per decoder chunk; None if no cut gives the same numbers as no cut.

    The rule of the original, for every number of frames; a clip of stride_t * n + 1 frames is always encoded in chunks
    of stride_t. Clips of fewer than 2 stride_t + 1 frames are not cut.
    """
    sizes = [frames]  # at the input of each level that halves time, then of the latents
    for _ in range(stride_t.bit_length() - 1):
        sizes.append((sizes[-1] - 1) // 2 + 1)
    decode = 2
    # A last chunk of one latent would have no neighbour to interpolate with, and the chunk before no look-ahead.
    while decode < frames and (sizes[-1] - 1) % decode == 1:
        decode *= 2
    if max(decode, stride_t) >= frames:
        return None
    encode = stride_t
    for size in sizes[:-1]:
        if size % 2 == 0 or ((size - 1) % encode == 1 and size - 1 > encode):
            encode *= 2
    return encode, decode


def encode_spans(frames: int, stride_t: int) -> list[Span]:
    """Chunks of a clip of `frames` frames for the encoder; a single one if the clip cannot be cut."""
    sizes = chunk_sizes(frames, stride_t)
    if sizes is None:
        return [Span(0, frames)]
    return _cut(frames, sizes[0])


def decode_spans(latents: int, stride_t: int) -> list[Span]:
    """Chunks of a clip of `latents` latent frames for the decoder; a single one if the clip cannot be cut."""
    sizes = chunk_sizes((latents - 1) * stride_t + 1, stride_t)
    if sizes is None:
        return [Span(0, latents)]
    # Frame 0 is not interpolated over time, so the first chunk needs no look-ahead. A single latent behind a chunk would
    # be skipped here as in the original; `chunk_sizes` never leaves one.
    return [
        span._replace(lookahead=1) if span.start > 0 and span.stop + 1 < latents else span
        for span in _cut(latents, sizes[1])
    ]


def streamed_spans(latents: int, stride_t: int) -> list[Span]:
    """`decode_spans` for chunks that hold back instead of looking ahead: at most two latent frames each.

    So the memory of a chunk does not depend on the clip's length, as it does by the original's rule. A clip that is not
    cut stays whole.
    """
    spans = decode_spans(latents, stride_t)
    if len(spans) == 1:
        return spans
    return [Span(start, min(start + 2, span.stop)) for span in spans for start in range(span.start, span.stop, 2)]


def spans_of(config: "WFVAEConfig", cut: Callable[[int, int], list[Span]], frames: int) -> list[Span]:
    """The chunks of a clip; a single one without `use_tiling`. cut: `encode_spans` or `streamed_spans`."""
    if not config.use_tiling:
        return [Span(0, frames)]
    spans = cut(frames, config.strides[0])
    # the statistics of group norm depend on where the original cuts
    return without_a_single_frame(spans) if config.norm_type == "layernorm" else spans


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """First positions of the fewest tiles of `size` that cover `length` and overlap by at least `overlap`, evenly spread."""
    if size >= length:
        return [0]
    steps = -(-(length - size) // (size - overlap))
    return [round(step * (length - size) / steps) for step in range(steps + 1)]


def without_a_single_frame(spans: list[Span]) -> list[Span]:
    """Merges frame 0 into the next span: a pass over a single frame costs more than it saves."""
    if len(spans) == 1:
        return spans
    return [Span(0, spans[1].stop), *spans[2:]]


def _cut(length: int, size: int) -> list[Span]:
    return [Span(0, 1)] + [Span(start, min(start + size, length)) for start in range(1, length, size)]
