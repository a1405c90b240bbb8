"""Activation recomputation (1604.06174): forward again in the backward pass instead of storing."""

from collections.abc import Callable

from torch.utils.checkpoint import checkpoint


def maybe_recompute(on: bool, function: Callable, *arguments):
    """function(*arguments), with its inner activations recomputed in the backward pass if `on`.

    Non-reentrant: works with frozen inputs and keeps the results bitwise the same.
    """
    if not on:
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False)
