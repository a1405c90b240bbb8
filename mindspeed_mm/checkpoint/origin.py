"""What a checkpoint is of: a run of ours, a run of Open-Sora Plan or MindSpeed-MM, or weights alone."""

import dataclasses
from collections.abc import Mapping

from mindspeed_mm.checkpoint.layout import Location

_OF_A_RUN = ("optimizer", "opt_param_scheduler", "lr_scheduler", "rng_state")  # what Megatron saves beside the weights


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """What another program's checkpoint holds of a run. iteration: None where there are weights alone."""

    iteration: int | None
    samples: int
    has_average: bool


def is_ours(state: Mapping) -> bool:
    """Whether a checkpoint's plain values are a run's of this project."""
    return "data" in state and "clip" in state


def of(state: Mapping, location: Location) -> Origin:
    """state: the content of another program's model_optim_rng.pt at `location`.

    A `release` is weights alone, as in Megatron. Megatron's `args` count the samples; its `iteration` in there may be the
    one that the run began from, and is asked last.
    """
    flags, has_average = state.get("args"), isinstance(state.get("ema_model"), Mapping)
    samples, began, planned = (_number(flags, name) for name in ("consumed_train_samples", "iteration", "train_iters"))
    is_run = any(state.get(key) is not None for key in _OF_A_RUN) or (samples, began, planned) != (None,) * 3
    if location.directory.name == "release" or not is_run:
        return Origin(None, 0, has_average)
    batch = _number(flags, "global_batch_size") or 1
    told = (state.get("iteration"), location.iteration, samples and samples // batch, began)
    iteration = next((value for value in told if value is not None), 0)
    return Origin(iteration, iteration * batch if samples is None else samples, has_average)


def _number(flags, name: str) -> int | None:
    value = getattr(flags, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
