"""Copies between the host and the device, beside the device's work where it has queues for that."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# torch rounds pinned memory up to a power of two: pieces of this size waste little of a block's few hundred MiB
_PIECE = 2**26


class Copies:
    """Copies in the caller's order: for a CPU, where memory on the "device" is ordinary memory."""

    pinned = False

    def home(self, memory: Tensor) -> list[Tensor]:
        """A copy of `memory`, uint8 [n] on the host, that `start` copies fast: in pieces, pinned where the device has it."""
        return [piece.pin_memory() if self.pinned else piece.clone() for piece in memory.split(_PIECE)]

    def memory(self, numbers: int) -> Tensor:
        """Fp32 memory on the host, not initialised: [numbers], pinned where the device has it."""
        return torch.empty(numbers, dtype=torch.float32, pin_memory=self.pinned)

    def like(self, tensor: Tensor) -> Tensor:
        """Memory on the host, not initialised, for a tensor of the device: its shape, strides and dtype; pinned as above."""
        return torch.empty_like(tensor, device="cpu", pin_memory=self.pinned)

    def mark(self) -> Any:
        """A mark behind the work that the caller has given to the device so far."""
        return None

    def start(self, place: Tensor, home: Sequence[Tensor], after: Any) -> Any:
        """Begins to copy pieces into device memory `place`, one behind the other, and returns a mark behind the copy.

        after: mark of the last work that reads the place; None: no work reads it.
        """
        sizes = [piece.numel() for piece in home]
        return self.fetch(place[: sum(sizes)].split(sizes), home, after)

    def fetch(self, places: Sequence[Tensor], homes: Sequence[Tensor], after: Any) -> Any:
        """Begins to copy tensors of the host to the device, and returns a mark behind the copies. after: as in `start`."""
        return self._copied(places, homes)

    def store(self, homes: Sequence[Tensor], places: Sequence[Tensor], after: Any) -> Any:
        """Begins to copy tensors of the device to the host, behind a mark, and returns a mark behind the copies."""
        return self._copied(homes, places)

    def wait(self, mark: Any) -> None:
        """The caller's later work begins behind a mark."""

    def settle(self, mark: Any) -> None:
        """The host waits for a mark: it may read what was stored."""

    def _copied(self, into: Sequence[Tensor], source: Sequence[Tensor]) -> Any:
        for one, other in zip(into, source, strict=True):
            one.copy_(other, non_blocking=True)
        return self.mark()


class CopiesBeside(Copies):
    """Copies on queues of their own, one for each direction, from and to pinned memory."""

    pinned = True

    def __init__(self, api: Any):
        """api: torch.cuda or torch.npu."""
        self._api = api
        self._in, self._out = api.Stream(), api.Stream()

    def mark(self) -> Any:
        return self._api.current_stream().record_event()

    def fetch(self, places: Sequence[Tensor], homes: Sequence[Tensor], after: Any) -> Any:
        return self._behind(after, self._in, places, homes)

    def store(self, homes: Sequence[Tensor], places: Sequence[Tensor], after: Any) -> Any:
        return self._behind(after, self._out, homes, places)

    def wait(self, mark: Any) -> None:
        self._api.current_stream().wait_event(mark)

    def settle(self, mark: Any) -> None:
        mark.synchronize()

    def _behind(self, after: Any, queue: Any, into: Sequence[Tensor], source: Sequence[Tensor]) -> Any:
        with self._api.stream(queue):
            if after is not None:
                queue.wait_event(after)
            return self._copied(into, source)
