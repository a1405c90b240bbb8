"""The tasks of a student: it learns a frozen teacher's velocity, not that of the clips.

The clips only say where on the way from noise to data the teacher is asked. Everything else of the run (main weights,
average, moments, checkpoints, adapters) is the student's and works as without distillation.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.diffusion import guidance, schedule
from mindspeed_mm.models.denoiser import Conditions, Denoiser
from mindspeed_mm.parallel.seeds import generator
from mindspeed_mm.training.encoders import Encoded
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.types import TextFeatures, sent


class Teacher:
    """A frozen denoiser with guidance. It keeps no gradients and no state between calls."""

    def __init__(
        self,
        network: Denoiser,
        diffusion: DiffusionConfig,
        negative: TextFeatures | None,
        context: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ):
        """diffusion: scale, rule, rescaling and interval of guidance. negative: features [1,...] of the text in place of the
        caption; None without guidance. context: around each call, for a network that is the student's base too.
        """
        self.network = network
        self.diffusion = diffusion
        self.negative = negative
        self.context = context

    @property
    def passes(self) -> int:
        """Forward passes of a call, for each sample."""
        return 1 if self.negative is None else 2

    @torch.no_grad()
    def __call__(self, latents: Tensor, sigma: Tensor, conditions: Conditions, keep: Tensor) -> Tensor:
        """Guided velocity [B,C,T,H,W] fp32; see `Denoiser.forward`. Guidance counts padding in the spread of rescaling."""
        latents = latents.to(self.network.dtype)
        with self.context():
            if self.negative is None:
                return self.network(latents, sigma, conditions, keep).float()
            batch = conditions.batch
            text = self.negative.map(lambda value: value.expand(batch, *value.shape[1:]))
            both = Conditions.concatenate([dataclasses.replace(conditions, text=text), conditions])
            found = self.network(latents.repeat(2, 1, 1, 1, 1), sigma.repeat(2), both, keep.repeat(2, 1, 1, 1))
        without, with_prompt = found.float().chunk(2)
        return guidance.guided(self.diffusion, without, with_prompt, latents.float(), sigma)


@dataclasses.dataclass(frozen=True, slots=True)
class GuidanceDistillation(FlowMatchingTask):
    """The student's velocity without guidance becomes the teacher's with guidance (2210.03142, section 3.1, one scale)."""

    teacher: Teacher

    @property
    def frozen_passes(self) -> int:
        return self.teacher.passes

    def target(self, sample: Encoded, noise: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        return self.teacher(noisy, sigma, sample.conditions, sample.keep)


@dataclasses.dataclass(frozen=True, slots=True)
class StepDistillation(FlowMatchingTask):
    """The student's velocity at the beginning of each sampling step becomes the teacher's mean velocity over the step.

    One step of Euler then does what the teacher does in `teacher_steps` (progressive distillation, 2202.00512). As in
    PeRFlow (2405.07510) each step is learned by itself, from a clip with the noise of its beginning, so that no step waits
    for those before it.
    """

    teacher: Teacher
    steps: int
    teacher_steps: int

    @property
    def frozen_passes(self) -> int:
        return self.teacher.passes * self.teacher_steps

    @property
    def weighting(self) -> DiffusionConfig:
        """None by noise level: weights belong to a scheme's own distribution of levels."""
        return self.unweighted

    def target(self, sample: Encoded, noise: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        levels = sent(self._levels(LatentGrid(*noisy.shape[2:])), sigma.device)
        following = levels[(levels[None] >= sigma[:, None]).sum(1)]  # levels fall
        latents, width = noisy.float(), (sigma - following) / self.teacher_steps
        for index in range(self.teacher_steps):
            velocity = self.teacher(latents, sigma - index * width, sample.conditions, sample.keep)
            latents = latents - _per_sample(width) * velocity
        return (noisy.float() - latents) / _per_sample(sigma - following)

    def level(self, sigma: Tensor, grid: LatentGrid) -> Tensor:
        """The beginning of the step in which `sigma` lies."""
        levels = self._levels(grid)
        return levels[((levels[None] >= sigma[:, None]).sum(1) - 1).clamp(0, self.steps - 1)]

    def _sigma(self, z0: Tensor, addresses: tuple[tuple[int, int], ...]) -> Tensor:
        """Beginnings of steps, each as often as the others."""
        draws = [torch.randint(self.steps, (1,), generator=generator(self.seed, "step", *place)) for place in addresses]
        return sent(self._levels(LatentGrid(*z0.shape[2:]))[torch.cat(draws)], z0.device)

    def _levels(self, grid: LatentGrid) -> Tensor:
        """The noise levels of sampling, on the CPU."""
        return schedule.grid(dataclasses.replace(self.diffusion, num_inference_steps=self.steps), grid)


def _per_sample(value: Tensor) -> Tensor:
    """[B] -> [B,1,1,1,1]."""
    return value.reshape(-1, 1, 1, 1, 1)
