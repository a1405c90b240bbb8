"""Stopping a run from outside: SIGTERM and SIGUSR1 ask for a checkpoint and an orderly end."""

import signal
import types

import torch
import torch.distributed as dist

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers that a signal came; the step in progress is finished first."""

    def __init__(self):
        self._received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        self._received = number

    def agreed(self) -> str | None:
        """The signal's name if any rank received one; the same answer on every rank; collective, once a step."""
        number = torch.tensor(self._received or 0)  # on the CPU: gloo carries it beside the device's own backend
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return signal.Signals(number.item()).name if number else None
