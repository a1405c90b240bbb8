"""From noise to clean latents: steps of a solver along a velocity that guidance combines from two halves.

The halves (without and with the prompt) form one batch, run one after the other, or run on the two ranks of a pair.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.config.sample import SamplingOptions
from mindspeed_mm.config.solvers import SOLVERS, Point
from mindspeed_mm.diffusion import guidance
from mindspeed_mm.errors import SamplingError
from mindspeed_mm.models.denoiser import Conditions, Denoiser
from mindspeed_mm.models.image_conditions import on_straight_path
from mindspeed_mm.models.step_cache import StepCache
from mindspeed_mm.parallel.collectives import exchange_halves, of_first_half, sum_of_sample
from mindspeed_mm.planning.sampling import USABLE


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
    velocities = _Velocities(denoiser, conditions, diffusion, options, before_block)
    solver = SOLVERS[diffusion.solver]
    total, levels = len(sigmas) - 1, sigmas.tolist()
    points: list[Point] = []
    for index, (sigma, following) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        reuse = options.cache_rule.reuses(index, total)

        def evaluate(latents: Tensor, sigma: float, reuse: bool | None = reuse, number: int = index + 1) -> Tensor:
            velocity = velocities(latents, sigma, reuse)
            _check_finite(velocity, number, total, sigma, denoiser.dtype)
            return velocity

        velocity = evaluate(latents, sigma)
        points = [*points, Point.at(sigma, latents.float(), velocity)][-1 - solver.memory :]
        moved = solver.step(points, following, evaluate)
        points[-1] = dataclasses.replace(points[-1], latents=moved.begin)
        clean, latents = points[-1].clean.to(velocity.dtype), moved.latents.to(velocity.dtype)
        denoiser.parallel.pulse.beat(f"denoising step {index + 1} of {total}")
        yield Step(index + 1, total, following, latents, clean)


# Forward passes of one guided step, per `--cfg-mode`.
PARTS = {"batched": 1, "sequential": 2}


class _Velocities:
    """Computes the guided velocity at a noise level; holds the caches of both halves between steps.

    The half without prompt decides for both what they reuse. Their errors are alike then and mostly cancel; the velocity
    is scale * with - (scale - 1) * without, so an error of one half alone is multiplied.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: Conditions,
        diffusion: DiffusionConfig,
        options: SamplingOptions,
        before_block: Callable[[], None],
    ):
        self.denoiser = denoiser
        self.diffusion = diffusion
        self.before_block = before_block
        guided, rule = diffusion.guidance_scale > 1, options.cache_rule
        self.paired = guided and denoiser.parallel.guidance_size > 1

        def part(of: Conditions, deciding: int | None = None) -> tuple[Conditions, StepCache | None]:
            return of, StepCache(rule, self._together, deciding) if rule.is_on else None

        halves = conditions.chunk(2) if guided else [conditions]
        if self.paired:
            self.parts = [part(halves[denoiser.parallel.guidance_rank])]
        elif guided and PARTS[options.guidance_mode] == 1:
            self.parts = [part(conditions, deciding=halves[0].batch)]
        else:
            self.parts = [part(half) for half in halves]
        # where guidance does not apply; the halves one after the other have the same cache there
        self.with_prompt = self.parts[-1] if len(self.parts) == len(halves) else part(halves[-1])
        self.known = halves[-1].image

    def __call__(self, latents: Tensor, sigma: float, reuse: bool | None) -> Tensor:
        if self.paired:
            found = self._exchanged(latents, sigma, reuse)
        elif self.diffusion.guides_at(sigma):
            parts = []
            for conditions, cache in self.parts:
                parts.append(self._part(latents, sigma, conditions, cache, reuse))
                reuse = reuse if cache is None else cache.reused
            without, with_prompt = torch.cat(parts).chunk(2)
            found = guidance.guided(self.diffusion, without, with_prompt, latents, sigma)
        else:
            found = self._part(latents, sigma, *self.with_prompt, reuse)
        return found if self.known is None else on_straight_path(found, latents, sigma, self.known)

    def _together(self, value: Tensor) -> Tensor:
        """Sum over the ranks of a sample; on a pair that of the half without prompt."""
        value = sum_of_sample(value, self.denoiser.parallel)
        return of_first_half(value, self.denoiser.parallel) if self.paired else value

    def _exchanged(self, latents: Tensor, sigma: float, reuse: bool | None) -> Tensor:
        """The same on a pair of ranks, of which each computes a half."""
        mine = self._part(latents, sigma, *self.parts[0], reuse)
        without, with_prompt = exchange_halves(mine, self.denoiser.parallel)
        return guidance.guided(self.diffusion, without, with_prompt, latents, sigma)

    def _part(
        self, latents: Tensor, sigma: float, conditions: Conditions, cache: StepCache | None, reuse: bool | None
    ) -> Tensor:
        batch = conditions.batch
        if cache is not None:
            cache.reuse = False if cache.is_empty else reuse
            cache.sigma = sigma
        # a solver's own latents are fp32
        repeated = latents.to(self.denoiser.dtype).repeat(batch // latents.shape[0], 1, 1, 1, 1)
        level = torch.full((batch,), sigma, device=latents.device)
        return self.denoiser(repeated, level, conditions, step_cache=cache, before_block=self.before_block)


def _check_finite(velocity: Tensor, number: int, total: int, sigma: float, dtype: torch.dtype) -> None:
    bad = (~torch.isfinite(velocity)).flatten(1).any(1)
    if bad.any():
        of_batch = f" of {int(bad.sum())} of {len(bad)} samples" if len(bad) > 1 else ""
        advice = "fp16 may be too narrow for these weights, try --bf16 or weight_dtype fp32"
        if dtype != torch.float16:
            advice = "are the weights damaged, or guidance_scale and shift far too large?"
        raise SamplingError(
            f"step {number} of {total} (sigma {sigma:.4f}): the velocity{of_batch} is not finite; {advice}"
        )


def decide_mode(mode: str, resident_bytes: int, activations: int, batch: int, memory_bytes: int) -> str:
    """Resolves "auto" to "batched" if the activations of both halves fit beside the weights, else "sequential".

    memory_bytes: that the device has for this process. Both modes give the same video up to rounding.
    """
    if mode != "auto":
        return mode
    fits = resident_bytes + 2 * batch * activations <= USABLE * memory_bytes
    return "batched" if fits else "sequential"
