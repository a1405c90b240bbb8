"""Numbers of a training step and the line that reports them."""

import dataclasses
import time


@dataclasses.dataclass(frozen=True, slots=True)
class StepMetrics:
    """What is known after a step."""

    iteration: int
    train_iters: int
    consumed_samples: int
    global_batch_size: int
    loss: float
    gradient_norm: float
    clip_threshold: float | None
    learning_rate: float
    loss_scale: float
    seconds: float
    data_seconds: float  # of them, waiting for the loader
    skipped: str | None


def line(step: StepMetrics) -> str:
    """One line in the style of Megatron's log, so that scripts which parse that find their fields."""
    width = len(str(step.train_iters))
    fields = [
        f"iteration {step.iteration:>{width}}/{step.train_iters}",
        f"consumed samples: {step.consumed_samples}",
        f"elapsed time per iteration (ms): {1000 * step.seconds:.1f}",
        f"data wait (ms): {1000 * step.data_seconds:.1f}",
        f"learning rate: {step.learning_rate:.6E}",
        f"global batch size: {step.global_batch_size}",
        f"loss: {step.loss:.6E}",
        f"loss scale: {step.loss_scale:.1f}",
        f"grad norm: {step.gradient_norm:.6f}",
    ]
    if step.clip_threshold is not None:
        fields.append(f"clip threshold: {step.clip_threshold:.4f}")
    if step.skipped is not None:
        fields.append(f"skipped: {step.skipped}")
    return " | ".join(fields)


class Stopwatch:
    """Seconds since the last reading."""

    def __init__(self):
        self._start = time.perf_counter()

    def read(self) -> float:
        now = time.perf_counter()
        elapsed, self._start = now - self._start, now
        return elapsed
