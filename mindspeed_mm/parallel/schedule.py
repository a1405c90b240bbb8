"""Learning rate of a run by its number of updates; the batch size may change on a resume."""

import dataclasses
from collections.abc import Mapping

from mindspeed_mm import logs
from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.parallel.megatron import OptimizerParamScheduler

_log = logs.get(__name__)
_FLAGS = {  # Megatron's name in the scheduler's state -> our flag; the second group counts samples
    "max_lr": "--lr",
    "min_lr": "--min-lr",
    "lr_decay_style": "--lr-decay-style",
    "start_wd": "--weight-decay",
}
_COUNTS = {"lr_decay_steps": "--lr-decay-iters", "lr_warmup_steps": "--lr-warmup-iters"}


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """Position of a schedule. state: Megatron's, empty if unknown. samples_per_update: its unit, None if unknown."""

    updates: int
    samples_per_update: int | None = None
    state: Mapping = dataclasses.field(default_factory=dict)


class Schedule:
    """Megatron's scheduler, advanced by updates.

    Megatron counts samples, so after a resume with another global batch, iteration 11 would have another iteration's
    learning rate. Here an update always counts as the samples of the first global batch. A run with a constant batch
    size gets Megatron's numbers, and a changed batch size changes none of them.
    """

    def __init__(self, optimizer, settings: OptimizerSettings, global_batch_size: int):
        self._optimizer, self._settings = optimizer, settings
        self._now = global_batch_size
        self._start(global_batch_size)

    def _start(self, unit: int) -> None:
        settings, self._unit = self._settings, unit
        self._scheduler = OptimizerParamScheduler(
            self._optimizer,
            init_lr=settings.lr_warmup_init,
            max_lr=settings.lr,
            min_lr=settings.min_lr,
            lr_warmup_steps=settings.lr_warmup_iters * unit,
            lr_decay_steps=settings.lr_decay_iters * unit,
            lr_decay_style=settings.lr_decay_style,
            start_wd=settings.weight_decay,
            end_wd=settings.weight_decay,
            wd_incr_steps=settings.lr_decay_iters * unit,
            wd_incr_style="constant",
        )

    @property
    def updates(self) -> int:
        """Number of updates so far, without skipped steps."""
        return self._scheduler.num_steps // self._unit

    def advance(self) -> None:
        """Advances by one update."""
        self._scheduler.step(increment=self._unit)

    def state_dict(self) -> dict:
        """Megatron's state, in samples, and the samples that an update counts."""
        return {**self._scheduler.state_dict(), "samples_per_update": self._unit}

    def restore(self, position: Position) -> None:
        """Continues at a position. The current flags define the curve; the log names differences from the earlier
        flags.
        """
        unit = position.samples_per_update or self._now
        self._start(unit)
        self._scheduler.step(increment=position.updates * unit)
        changed = self._changed(position)
        if unit != self._now:
            changed.append(
                f"global batch size {unit} -> {self._now}, which moves no learning rate: updates are counted"
            )
        if changed:
            _log.info(f"learning rate: continues after update {position.updates}; {', '.join(changed)}")

    def _changed(self, position: Position) -> list[str]:
        then, now, unit = position.state, self._scheduler.state_dict(), position.samples_per_update
        values = {flag: (then.get(key, now[key]), now[key]) for key, flag in _FLAGS.items()}
        if unit is not None:
            values |= {flag: (then.get(key, now[key]) / unit, now[key] / unit) for key, flag in _COUNTS.items()}
        return [f"{flag} {_short(old)} -> {_short(new)}" for flag, (old, new) in values.items() if old != new]


def position_of(checkpoint: Mapping) -> Position:
    """Position in the common part of a checkpoint: ours of any age, or Megatron's, which counts samples."""
    state = checkpoint.get("opt_param_scheduler")
    iteration = int(checkpoint["iteration"])
    if state is not None and "samples_per_update" in state:
        unit = int(state["samples_per_update"])
        return Position(int(state["num_steps"]) // unit, unit, state)
    # ours, from before updates were counted: iterations minus skipped steps
    if state is None and "skipped_steps" in checkpoint:
        updates = iteration - int(checkpoint["skipped_steps"])
        state = (checkpoint.get("optimizer") or {}).get("opt_param_scheduler", {})
        unit = checkpoint["data"].get("group_size") or _whole(state.get("num_steps"), updates)
        return Position(updates, unit, state)
    unit = getattr(checkpoint.get("args"), "global_batch_size", None)
    updates = _whole((state or {}).get("num_steps"), unit)
    return Position(iteration if updates is None else updates, unit, state or {})


def _whole(samples: int | None, count: int | None) -> int | None:
    """samples / count if it is a whole number, else None."""
    if not samples or not count or samples % count:
        return None
    return samples // count


def _short(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
