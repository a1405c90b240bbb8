"""From noise to clean latents: Euler steps along a velocity that guidance combines from two halves.

The halves (without and with the prompt) form one batch, run one after the other, or run on the two ranks of a pair.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.config.sample import SamplingOptions
from mindspeed_mm.diffusion import euler, guidance
from mindspeed_mm.errors import SamplingError
from mindspeed_mm.models.denoiser import Conditions, Denoiser
from mindspeed_mm.models.step_cache import StepCache
from mindspeed_mm.parallel.collectives import exchange_halves

_MEMORY_SHARE = 0.85  # share of the device's memory; the estimate omits workspaces, fragmentation and NCCL


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """State after one step.

    number: 1 to total. sigma: noise level of `latents` [B,C,T,H,W]. clean: estimate of the clean latents.
    """

    number: int
    total: int
    sigma: float
    latents: Tensor
    clean: Tensor


def steps(
    denoiser: Denoiser,
    latents: Tensor,
    conditions: Conditions,
    sigmas: Tensor,
    diffusion: DiffusionConfig,
    options: SamplingOptions,
    before_block: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Takes latents [B,C,T,H,W] from noise level sigmas[0] to sigmas[-1], one step per iteration.

    conditions: [B,...], or with guidance [2B,...] with the negative prompts first. options.guidance_mode must not be "auto".
    before_block: called before each block of the denoiser; an exception from it ends the sampling. Raises
    SamplingError at the first step whose velocity is not finite.
    """
    velocities = _Velocities(
        denoiser, conditions, diffusion, options.guidance_mode, options.step_cache > 1, before_block
    )
    total = len(sigmas) - 1
    for index, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        velocity = velocities(latents, sigma, reuse=reuses(index, total, options.step_cache))
        _check_finite(velocity, index + 1, total, sigma, denoiser.dtype)
        clean = euler.clean_estimate(latents, velocity, sigma)
        latents = euler.step(latents, velocity, sigma, following)
        denoiser.parallel.pulse.beat(f"denoising step {index + 1} of {total}")
        yield Step(index + 1, total, following.item(), latents, clean)


def reuses(number: int, total: int, every: int) -> bool:
    """True if step `number` (from 0) of `total` reuses an earlier step's residuals; every `every`-th step runs whole.

    The first fifth of the steps, which fixes the layout of the video, and the last step run whole. The number alone
    decides, so that every rank of every layout decides alike.
    """
    first = -(-total // 5)
    return every > 1 and first <= number < total - 1 and (number - first + 1) % every != 0


# Forward passes of one guided step, per `--cfg-mode`.
PARTS = {"batched": 1, "sequential": 2}


class _Velocities:
    """Computes the guided velocity at a noise level; holds the caches of both halves between steps."""

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: Conditions,
        diffusion: DiffusionConfig,
        mode: str,
        with_cache: bool,
        before_block: Callable[[], None],
    ):
        self.denoiser = denoiser
        self.diffusion = diffusion
        self.before_block = before_block
        guided = diffusion.guidance_scale > 1
        self.paired = guided and denoiser.parallel.guidance_size > 1
        if self.paired:
            self.parts = [conditions.chunk(2)[denoiser.parallel.guidance_rank]]
        else:
            self.parts = conditions.chunk(PARTS[mode]) if guided else [conditions]
        self.guided = guided
        self.caches = [StepCache() if with_cache else None for _ in self.parts]

    def __call__(self, latents: Tensor, sigma: Tensor, reuse: bool) -> Tensor:
        found = [self._part(latents, sigma, *part, reuse) for part in zip(self.parts, self.caches, strict=True)]
        if not self.guided:
            return found[0]
        if self.paired:
            without, with_prompt = exchange_halves(found[0], self.denoiser.parallel)
        else:
            without, with_prompt = torch.cat(found).chunk(2)
        return guidance.combine(without, with_prompt, self.diffusion.guidance_scale, self.diffusion.guidance_rescale)

    def _part(
        self, latents: Tensor, sigma: Tensor, conditions: Conditions, cache: StepCache | None, reuse: bool
    ) -> Tensor:
        batch = conditions.batch
        if cache is not None:
            cache.reuse = reuse
        repeated = latents.repeat(batch // latents.shape[0], 1, 1, 1, 1)
        return self.denoiser(
            repeated, sigma.expand(batch), conditions, step_cache=cache, before_block=self.before_block
        )


def _check_finite(velocity: Tensor, number: int, total: int, sigma: Tensor, dtype: torch.dtype) -> None:
    bad = (~torch.isfinite(velocity)).flatten(1).any(1)
    if bad.any():
        of_batch = f" of {int(bad.sum())} of {len(bad)} samples" if len(bad) > 1 else ""
        advice = "fp16 may be too narrow for these weights, try --bf16 or weight_dtype fp32"
        if dtype != torch.float16:
            advice = "are the weights damaged, or guidance_scale and shift far too large?"
        raise SamplingError(
            f"step {number} of {total} (sigma {sigma.item():.4f}): the velocity{of_batch} is not finite; {advice}"
        )


def decide_mode(mode: str, resident_bytes: int, activations: int, batch: int, memory_bytes: int) -> str:
    """Resolves "auto" to "batched" if the activations of both halves fit beside the weights, else "sequential".

    Decides from sizes alone, not from the memory that is free now, so that a repeated job decides the same.
    """
    if mode != "auto":
        return mode
    fits = resident_bytes + 2 * batch * activations <= _MEMORY_SHARE * memory_bytes
    return "batched" if fits else "sequential"
