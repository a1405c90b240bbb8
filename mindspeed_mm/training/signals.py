"""Makes all ranks end at the same step, whichever of them was asked to stop."""

import torch
import torch.distributed as dist

from mindspeed_mm.config.run import ExitConfig
from mindspeed_mm.stopping import REASONS, Reason, StopRequest, place_of


def agreed(wanted: str | None) -> Reason | None:
    """The reason to end now, the same on every rank, or None; collective.

    wanted: name of this rank's reason, or None.
    """
    place = torch.tensor(place_of(wanted))  # a CPU tensor: gloo carries it beside the device's own backend
    dist.all_reduce(place, op=dist.ReduceOp.MIN)
    return REASONS[place] if place < len(REASONS) else None


def planned(settings: ExitConfig, request: StopRequest, iteration: int) -> str | None:
    """Name of the flag by which this process must end after an iteration, or None."""
    if settings.minutes is not None and request.minutes() >= settings.minutes:
        return "--exit-duration-in-mins"
    if settings.interval is not None and iteration % settings.interval == 0:
        return "--exit-interval"
    return None


def announcement(reason: Reason, iteration: int, saves: bool, trained: bool) -> str:
    """The log line that announces the end. trained: True if this process has done a step."""
    if not trained:
        return f"{reason.name}: ending before the first step; there is nothing to save"
    if not saves:
        return f"{reason.name}: ending at iteration {iteration}; nothing is saved without --save"
    return f"{reason.name}: saving and ending at iteration {iteration}"
