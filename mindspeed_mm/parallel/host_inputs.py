"""Inputs of recomputed blocks that wait on the host for the backward pass.

A recomputed block keeps its inputs alone. Here they are copied to the host beside the block's work and leave the device
when the next block begins. In the backward pass a block's inputs come back beside the work of the block behind it.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mindspeed_mm.platforms.copies import Copies


class HostInputs:
    """Says whose inputs wait on the host: those of the first `blocks` blocks, numbered from 1."""

    def __init__(self, copies: Copies, blocks: int):
        self.copies = copies
        self.blocks = blocks


class HostPass:
    """The inputs of one forward pass. The graph of that pass holds them, so they go with it."""

    def __init__(self, inputs: HostInputs | None):
        """inputs: None keeps all on the device."""
        self._inputs = inputs
        self._before: _Kept | None = None

    def keeping(self, recomputed: bool, depth: int, *inputs: Tensor) -> contextlib.AbstractContextManager:
        """Context around each block's forward pass: what autograd saves of a recomputed one's inputs goes to the host. depth:
        the block's number, from 1.
        """
        before = self._before
        if before is not None:
            before.leave()
        if not recomputed or self._inputs is None or depth > self._inputs.blocks or not torch.is_grad_enabled():
            self._before = None
            return contextlib.nullcontext()
        self._before = _Kept(self._inputs.copies, before, inputs)
        return torch.autograd.graph.saved_tensors_hooks(self._before.pack, self._before.unpack)


class _Kept:
    """A block's inputs on the host."""

    def __init__(self, copies: Copies, before: "_Kept | None", inputs: Sequence[Tensor]):
        self._copies = copies
        self._before = before
        self._wanted = {tensor.data_ptr() for tensor in inputs}
        self._homes: list[Tensor] = []
        self._here: dict[int, Tensor] = {}  # on the device, by place in `_homes`
        self._devices: list[torch.device] = []
        self._mark: Any = None  # behind the last copies

    def pack(self, tensor: Tensor) -> Tensor | int:
        """Begins to copy an input to the host, and returns its number; any other tensor stays as it is."""
        if tensor.data_ptr() not in self._wanted:
            return tensor
        home = self._copies.like(tensor)
        self._mark = self._copies.store([home], [tensor.detach()], self._copies.mark())
        self._here[len(self._homes)] = tensor.detach()
        self._homes.append(home)
        self._devices.append(tensor.device)
        return len(self._homes) - 1

    def leave(self) -> None:
        """Gives the inputs' memory on the device free, for work behind their copies."""
        if self._here:
            self._copies.wait(self._mark)
            self._here.clear()

    def fetch(self) -> None:
        """Begins to copy to the device what is not there."""
        missing = [number for number in range(len(self._homes)) if number not in self._here]
        if missing:
            places = [torch.empty_like(self._homes[number], device=self._devices[number]) for number in missing]
            self._mark = self._copies.fetch(places, [self._homes[number] for number in missing], self._copies.mark())
            self._here.update(zip(missing, places, strict=True))

    def unpack(self, packed: Tensor | int) -> Tensor:
        """The tensor for the caller's queue. Begins to copy the inputs of the block before."""
        if isinstance(packed, Tensor):
            return packed
        if packed not in self._here:
            self.fetch()
        self._copies.wait(self._mark)
        found = self._here.pop(packed)
        if self._before is not None:
            self._before.fetch()
            self._before = None
        return found
