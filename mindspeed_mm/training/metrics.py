"""Numbers of a training step and the line that reports them."""

import dataclasses
import time


@dataclasses.dataclass(frozen=True, slots=True)
class StepMetrics:
    """Figures of one step. Rates are per second, for all ranks together."""

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
    data_share: float  # share of the time spent waiting for the loader
    samples_per_second: float
    tokens_per_second: float | None  # video tokens; None for a network without tokens
    tflops: float | None  # of one device: forward and backward, without recomputation; None if they are not counted
    mfu: float | None  # share of the device's peak; None if it or the operations are unknown
    memory_gib: float  # peak so far, on this rank
    skipped: str | None
    skipped_steps: int  # in the run so far
    parts: dict[str, float] = dataclasses.field(default_factory=dict)  # of the loss, by the objective's names

    @property
    def eta_seconds(self) -> float:
        return (self.train_iters - self.iteration) * self.seconds

    def scalars(self) -> dict[str, float]:
        """The figures that vary, for plots."""
        names = ("loss", "gradient_norm", "clip_threshold", "learning_rate", "loss_scale", "seconds", "data_share")
        names += ("samples_per_second", "tokens_per_second", "tflops", "mfu", "memory_gib", "skipped_steps")
        found = {name: getattr(self, name) for name in names}
        return {**{name: value for name, value in found.items() if value is not None}, **self.parts}

    def record(self) -> dict[str, object]:
        """All figures, the parts of the loss beside the others."""
        found = dataclasses.asdict(self)
        return found | found.pop("parts")


def line(step: StepMetrics) -> str:
    """One line in Megatron's log format, so that scripts that parse such logs find its fields."""
    width = len(str(step.train_iters))
    fields = [
        f"iteration {step.iteration:>{width}}/{step.train_iters}",
        f"consumed samples: {step.consumed_samples}",
        f"elapsed time per iteration (ms): {1000 * step.seconds:.1f}",
        f"learning rate: {step.learning_rate:.6E}",
        f"global batch size: {step.global_batch_size}",
        f"loss: {step.loss:.6E}",
        *(f"{name}: {value:.6E}" for name, value in step.parts.items()),
        f"loss scale: {step.loss_scale:.1f}",
        f"grad norm: {step.gradient_norm:.6f}",
    ]
    if step.clip_threshold is not None:
        fields.append(f"clip threshold: {step.clip_threshold:.4f}")
    fields.append(f"samples/s: {step.samples_per_second:.3f}")
    if step.tokens_per_second is not None:
        fields.append(f"tokens/s: {step.tokens_per_second:.0f}")
    if step.tflops is not None:
        fields.append(f"TFLOP/s: {step.tflops:.3g}")
    if step.mfu is not None:
        fields.append(f"MFU: {step.mfu:.1%}")
    fields += [
        f"memory: {step.memory_gib:.2f} GiB",
        f"data wait: {step.data_share:.1%}",
        f"ETA: {duration(step.eta_seconds)}",
    ]
    if step.skipped_steps:
        fields.append(f"skipped steps: {step.skipped_steps}")
    if step.skipped is not None:
        fields.append(f"skipped: {step.skipped}")
    return " | ".join(fields)


def duration(seconds: float) -> str:
    """Formats a duration as 2d03h, 4h05m, 3m20s or 12s."""
    seconds = int(seconds)
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"


@dataclasses.dataclass(slots=True)
class Work:
    """Work on this rank: samples, and the network's video tokens and operations, forward and backward (0: uncounted)."""

    samples: int = 0
    tokens: int = 0
    flops: int = 0

    def add(self, other: "Work") -> None:
        self.samples += other.samples
        self.tokens += other.tokens
        self.flops += other.flops


class Stopwatch:
    """Seconds since the last reading."""

    def __init__(self):
        self._start = time.perf_counter()

    def read(self) -> float:
        now = time.perf_counter()
        elapsed, self._start = now - self._start, now
        return elapsed
