"""Activation recomputation (1604.06174): repeats forward passes in the backward pass instead of storing activations."""

from collections.abc import Callable

from torch.utils.checkpoint import checkpoint


def maybe_recompute(on: bool, function: Callable, *arguments):
    """function(*arguments); if `on`, its inner activations are recomputed in the backward pass.

    Non-reentrant: works with frozen inputs, and results are bitwise equal.
    """
    if not on:
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False)
