"""Turns accumulated gradients into updated weights: average, measure, clip or skip, update, EMA, learning rate."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mindspeed_mm.errors import TrainingDiverged
from mindspeed_mm.optim.adaptive_clip import AdaptiveClip, FixedClip
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.parallel.engine import Engine


@dataclasses.dataclass(frozen=True, slots=True)
class StepReport:
    """Outcome of a step's gradients."""

    gradient_norm: float
    threshold: float | None
    learning_rate: float
    loss_scale: float
    skipped: str | None  # reason why the weights were not updated; None if they were


class OptimizerStep:
    """The part of a training step after the backward pass. Its state is part of every checkpoint."""

    def __init__(self, engine: Engine, clip: FixedClip | AdaptiveClip, ema: Ema | None, max_skipped_steps: int):
        self.engine = engine
        self.clip = clip
        self.ema = ema
        self.max_skipped_steps = max_skipped_steps
        self.skipped_in_a_row = 0

    def __call__(self, beside: Sequence[Tensor] = ()) -> tuple[StepReport, list[float]]:
        """Updates the weights from the gradients of a step.

        beside: numbers [n] on the device; they are read together with the gradient norm, in the step's only wait of the
        host for the device, and returned in one list. Clipping and skipping decide on the host, so the update begins
        behind this read.

        An fp16 overflow does not count as a skipped step while the loss scale can be lowered, since this finds the
        scale. The learning rate advances with updates only, as in Megatron.
        """
        loss_scale, learning_rate = self.engine.loss_scale(), self.engine.learning_rate()
        squared, overflow, *others = torch.cat([self.engine.finish_gradients(), *beside]).tolist()
        self.engine.note_overflow(overflow > 0)
        norm = float("inf") if overflow else squared**0.5
        if overflow:
            report = StepReport(norm, None, learning_rate, loss_scale, self._overflow(loss_scale))
        else:
            decision = self.clip.decide(norm)
            report = StepReport(norm, decision.threshold, learning_rate, loss_scale, decision.skip)
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if decision.skip else 0
            if decision.skip is None:
                if decision.scale != 1.0:
                    self.engine.scale_gradients(decision.scale)
                self.engine.update()
                self.engine.advance_schedule()
                if self.ema is not None:
                    self.ema.update()
        return report, others

    def _overflow(self, loss_scale: float) -> str:
        if loss_scale > self.engine.lowest_loss_scale:
            return "fp16 overflow, the loss scale is lowered"
        self.skipped_in_a_row += 1
        return f"fp16 overflow at the lowest loss scale, {loss_scale:g}"

    def check(self) -> None:
        """Raises TrainingDiverged once max_skipped_steps steps in a row were skipped."""
        if self.skipped_in_a_row >= self.max_skipped_steps:
            raise TrainingDiverged(
                f"{self.skipped_in_a_row} steps in a row were skipped; the last saved checkpoint is from before them. "
                "Look at the samples named above, or lower --lr (--max-skipped-steps sets the number)"
            )
