"""Rules of classifier-free guidance: what stands for the prediction without prompt in u + scale (c - u).

Each rule is a row of a table whose keys are the choices of `diffusion.guidance_rule`. The functions use methods of tensors
and import no torch.
"""

from collections.abc import Callable
from typing import Any

# (without, with prompt, latents, sigma) -> what stands for `without`; all tensors [B,...]
Rule = Callable[[Any, Any, Any, Any], Any]


def _plain(without: Any, with_prompt: Any, latents: Any, sigma: Any) -> Any:
    """The prediction itself (2207.12598)."""
    return without


def _scaled(without: Any, with_prompt: Any, latents: Any, sigma: Any) -> Any:
    """CFG-Zero* (2503.18886, section 4): scaled so that its distance to the prediction with prompt is least."""
    return _dot(with_prompt, without) / _dot(without, without) * without


def _orthogonal(without: Any, with_prompt: Any, latents: Any, sigma: Any) -> Any:
    """APG (2410.02416) with eta 0, no momentum and no limit: of the step between both estimates of the clean latents only
    the part stays that is orthogonal to the estimate with prompt. The other part mostly raises the contrast.
    """
    clean = latents - sigma * with_prompt
    step = sigma * (without - with_prompt)  # clean with prompt minus clean without
    step = step - _dot(step, clean) / _dot(clean, clean) * clean
    return with_prompt + step / sigma


def _dot(first: Any, second: Any) -> Any:
    """Inner product of each sample, [B,1,...]."""
    axes = tuple(range(1, first.ndim))
    return (first.float() * second.float()).sum(axes, keepdim=True).to(first.dtype)


RULES: dict[str, Rule] = {"cfg": _plain, "cfg-zero": _scaled, "apg": _orthogonal}
