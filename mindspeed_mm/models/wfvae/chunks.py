"""Temporal chunks: where a long clip is cut, and the frames that one chunk passes to the next.

The autoencoder is causal, so a clip may pass in pieces if every causal convolution gets the last frames of the
previous piece. Those frames live in the `Chunk` values of one encode or decode call, never on a module, so clips of
any length may follow each other. An uncut clip is one chunk, the first and the last.

Frame 0 is its own chunk, because it has its own latent. In the decoder, interpolation over time looks one frame ahead.
The original adds the next latent to a chunk and drops that latent's frames again, so that chunks of two latents cost
half as much again. Here the frame that needs the next one waits for the next chunk (`Chunk.holds`), and later
additions to it wait as well (`Chunk.wait`): every frame is computed once.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Span(NamedTuple):
    """Frames (or latent frames) [start, stop) of a clip, and the number of extra frames to read after `stop`."""

    start: int
    stop: int
    lookahead: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Position of a piece of a clip, as its modules see it, and the frames carried over from the previous piece.

    lookahead: frames at the end, at the frame rate of the module at hand, that the next chunk will see again.
    holds: without look-ahead, a frame that needs the next one comes out with the next chunk.
    tails: module -> the last frames it saw [B,C,n,H,W]; one dict for all chunks of a clip.
    draws: one generator per clip for dropout; needed in training with dropout.
    """

    first: bool = True
    last: bool = True
    lookahead: int = 0
    holds: bool = False
    tails: dict[nn.Module, Tensor] = dataclasses.field(default_factory=dict)
    draws: Sequence[torch.Generator] | None = None

    def take(self, module: nn.Module) -> Tensor | None:
        """Frames that `module` kept in the previous chunk, or None."""
        return self.tails.pop(module, None)

    def keep(self, module: nn.Module, video: Tensor, frames: int) -> None:
        """Passes the last `frames` frames of `video` before the look-ahead to the module's next chunk, if there is one."""
        if not self.last:
            stop = video.shape[2] - self.lookahead
            # A copy, because a view would keep the whole video in memory.
            self.tails[module] = video[:, :, stop - frames : stop].clone()

    def wait(self, module: nn.Module, video: Tensor, frames: int) -> Tensor:
        """The first `frames` frames of the module's pending results; the others wait for the next chunk."""
        before = self.take(module)
        if before is not None:
            video = torch.cat((before, video), dim=2)
        if video.shape[2] > frames:
            self.tails[module] = video[:, :, frames:].clone()
        return video[:, :, :frames]

    def finer(self) -> "Chunk":
        """The same chunk at twice the frame rate."""
        return dataclasses.replace(self, lookahead=2 * self.lookahead)


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


def without_a_single_frame(spans: list[Span]) -> list[Span]:
    """Merges frame 0 into the next span: a pass over a single frame costs more than it saves."""
    if len(spans) == 1:
        return spans
    return [Span(0, spans[1].stop), *spans[2:]]


def _cut(length: int, size: int) -> list[Span]:
    return [Span(0, 1)] + [Span(start, min(start + size, length)) for start in range(1, length, size)]
