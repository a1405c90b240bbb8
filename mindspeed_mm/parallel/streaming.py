"""Blocks of a network that live on the host: a few of them are on the device at a time.

When a block is entered, the next one is copied beside its work: the following block in the forward pass, the one before
in the backward pass. Nothing else has to say which pass runs, since blocks are entered in their order, or in reverse.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mindspeed_mm.platforms.copies import Copies


class BlockStream:
    """The memory of each block, on the device while it is asked for.

    A block's memory moves when another block needs its place. So nothing may keep a view of it for the backward pass:
    `made_again` of `linear.py` asks again.
    """

    def __init__(self, homes: Sequence[Sequence[Tensor]], resident: int, device: torch.device, copies: Copies):
        """homes: the memory of each block on the host, uint8 in pieces; see `Copies.home`. resident: number of blocks
        that have a place on the device; with one, nothing is copied beside work.
        """
        size = max(sum(piece.numel() for piece in home) for home in homes)
        self._homes = homes
        self._copies = copies
        self._places = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(resident)]
        self._place_of: dict[int, int] = {}  # block -> its place
        self._arrived: dict[int, Any] = {}  # block -> mark of its copy
        now = copies.mark()  # the memory may have been another tensor's, whose work has not ended
        self._left: dict[int, Any] = dict.fromkeys(range(resident), now)  # place -> mark of the last work that reads it
        self._entered: int | None = None
        self.moved_bytes = 0  # from the host, so far
        self.moved_beside_bytes = 0  # of these, what was copied beside the work of another block

    def block(self, index: int) -> Tensor:
        """A block's memory for the caller's queue: uint8, at least as long as its home. Begins to copy the next one."""
        if index != self._entered:
            self._enter(index)
        return self._places[self._place_of[index]]

    def _enter(self, index: int) -> None:
        before, last = self._entered, len(self._homes) - 1
        if before is not None:
            self._left[self._place_of[before]] = self._copies.mark()
        if index not in self._place_of:
            self._copy(index, None)
        self._copies.wait(self._arrived[index])
        self._entered = index
        forward = index == 0 or (index != last and (before is None or index > before))
        following = index + 1 if forward else index - 1
        if following not in self._place_of and len(self._places) > 1:
            self._copy(following, index)

    def _copy(self, index: int, busy: int | None) -> None:
        """Copies a block into a free place, or into that of the block farthest from it. busy: block that stays."""
        place = next((number for number in range(len(self._places)) if number not in self._place_of.values()), None)
        if place is None:
            farthest = max((held for held in self._place_of if held != busy), key=lambda held: abs(held - index))
            place = self._place_of.pop(farthest)
            del self._arrived[farthest]
        after = self._left.pop(place, None)
        self._arrived[index] = self._copies.start(self._places[place], self._homes[index], after)
        self._place_of[index] = place
        size = sum(piece.numel() for piece in self._homes[index])
        self.moved_bytes += size
        self.moved_beside_bytes += 0 if busy is None else size
