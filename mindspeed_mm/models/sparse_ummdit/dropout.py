"""Dropout of the denoiser, equal at every layout: each number's place in the whole network decides (`ops/dropout.py`)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mindspeed_mm.ops import dropout
from mindspeed_mm.parallel.layout import Layout
from mindspeed_mm.types import Drops

_FIRST_TEXT = 2**31  # first place of text tokens; no video has as many tokens


class Places(NamedTuple):
    """Seeds [B] of a forward pass's dropout, and the places of tokens in the whole sequence; all int64.

    seeds: of the network's dropout, adapters: of that of adapters; None without. Inside the column-split linears a rank
    has the tokens of its context rank: `video`, `text`, or `both` one after the other. Between them sequence parallel
    splits these over TP: `video_part` and `text_part`.
    """

    seeds: Tensor | None
    adapters: Tensor | None
    video: Tensor
    text: Tensor
    both: Tensor
    video_part: Tensor
    text_part: Tensor

    @classmethod
    def of(cls, seeds: Tensor | None, adapters: Tensor | None, tokens: int, text: Tensor, parallel: Layout) -> "Places":
        """seeds, adapters: [B] int64 in [0, 2^63). tokens: number of the whole video. text: [L], number of each text
        token before padding was removed.
        """
        video = torch.arange(tokens, device=text.device).chunk(parallel.context_size)[parallel.context_rank]
        text = (text + _FIRST_TEXT).chunk(parallel.context_size)[parallel.context_rank]
        parts = parallel.tensor_size if parallel.sequence_parallel else 1
        # Each TP rank has adjacent parts of both streams, and the linear gathers them rank by rank.
        pairs = list(zip(video.chunk(parts), text.chunk(parts), strict=True))
        both = torch.cat([tokens for pair in pairs for tokens in pair])
        mine = pairs[parallel.tensor_rank if parts > 1 else 0]
        return cls(_mixed(seeds), _mixed(adapters), video, text, both, *mine)

    def at(self, depth: int) -> "Places":
        """Places for the block at this depth. An adapter's dropout knows its linear."""
        return self._replace(seeds=None if self.seeds is None else dropout.derive(self.seeds, depth))

    def drops(self, tokens: Tensor) -> Drops | None:
        """For adapters on an activation with these tokens; None without their dropout."""
        return None if self.adapters is None else Drops(self.adapters, tokens)

    def around_attention(self) -> tuple[Drops | None, ...]:
        """For the projections of video and text before attention, and for those behind it."""
        tokens = (self.video_part, self.text_part, self.video, self.text)
        return tuple([self.drops(part) for part in tokens])

    @property
    def both_part(self) -> Tensor:
        """This rank's tokens of both streams, one after the other."""
        return torch.cat((self.video_part, self.text_part))


def _mixed(seeds: Tensor | None) -> Tensor | None:
    return None if seeds is None else dropout.mix(seeds & 0xFFFFFFFF) ^ dropout.mix(seeds >> 32)


def applied(linear: nn.Module, x: Tensor, drops: Drops | None) -> Tensor:
    """linear(x), with dropout of its adapters, if any; plain linears know no dropout."""
    return linear(x) if drops is None else linear(x, drops)


class Dropout(nn.Module):
    """Dropout at one of a block's places; without parameters. Called only with `Places`."""

    def __init__(self, rate: float, place: int, parallel: Layout, *, features_split: bool = False):
        """place: distinguishes the dropouts of a block. features_split: True if the features are split over TP."""
        super().__init__()
        self.rate = rate
        self.place = place
        self._rank = parallel.tensor_rank if features_split else 0

    def forward(self, x: Tensor, seeds: Tensor, tokens: Tensor) -> Tensor:
        """x: [S,B,D] of this rank; seeds: [B], tokens: [S], see `Places`."""
        return dropout.dropout(x, self.rate, dropout.derive(seeds, self.place), tokens, self._rank * x.shape[2])
