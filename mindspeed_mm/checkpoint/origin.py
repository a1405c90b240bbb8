"""Origin of a checkpoint: a run of this program, a run of Open-Sora Plan or MindSpeed-MM, or weights alone."""

import dataclasses
from collections.abc import Mapping

from mindspeed_mm.files.layout import Location

# keys that Megatron saves beside the weights of a run
_OF_A_RUN = ("optimizer", "opt_param_scheduler", "lr_scheduler", "rng_state")


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Training state in another program's checkpoint. iteration: None for weights alone."""

    iteration: int | None
    samples: int
    has_average: bool


def is_ours(state: Mapping) -> bool:
    """True if a checkpoint's plain values come from a run of this project."""
    return "data" in state and "clip" in state


def of(state: Mapping, location: Location) -> Origin:
    """state: content of another program's model_optim_rng.pt at `location`.

    A `release` holds weights alone, as in Megatron. The samples are in Megatron's `args`. Its `iteration` there may be
    the iteration at which the run began, so it is the last source.
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
