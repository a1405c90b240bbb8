"""Temporal chunks: the frames that one chunk of a clip passes to the next (`families/wfvae_spans.py` says where it is cut).

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

import torch
from torch import Tensor, nn


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
