"""Copies from the host to the device, beside the device's work where it has queues for that."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

# torch rounds pinned memory up to a power of two: pieces of this size waste little of a block's few hundred MiB
_PIECE = 2**26


class Copies:
    """Copies in the caller's order: for a CPU, where memory on the "device" is ordinary memory."""

    pinned = False

    def home(self, memory: Tensor) -> list[Tensor]:
        """A copy of `memory`, uint8 [n] on the host, that `start` copies fast: in pieces, pinned where the device has it."""
        return [piece.pin_memory() if self.pinned else piece.clone() for piece in memory.split(_PIECE)]

    def mark(self) -> Any:
        """A mark behind the work that the caller has given to the device so far."""
        return None

    def start(self, place: Tensor, home: Sequence[Tensor], after: Any) -> Any:
        """Begins to copy pieces into device memory `place`, one behind the other, and returns a mark behind the copy.

        after: mark of the last work that reads the place; None: no work reads it.
        """
        begin = 0
        for piece in home:
            place[begin : begin + piece.numel()].copy_(piece, non_blocking=True)
            begin += piece.numel()
        return self.mark()

    def wait(self, mark: Any) -> None:
        """The caller's later work begins behind a mark."""


class CopiesBeside(Copies):
    """Copies on a queue of their own, from pinned memory."""

    pinned = True

    def __init__(self, api: Any):
        """api: torch.cuda or torch.npu."""
        self._api = api
        self._queue = api.Stream()

    def mark(self) -> Any:
        return self._api.current_stream().record_event()

    def start(self, place: Tensor, home: Sequence[Tensor], after: Any) -> Any:
        with self._api.stream(self._queue):
            if after is not None:
                self._queue.wait_event(after)
            return super().start(place, home, after)

    def wait(self, mark: Any) -> None:
        self._api.current_stream().wait_event(mark)
