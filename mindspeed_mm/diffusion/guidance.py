"""Classifier-free guidance."""

from torch import Tensor


def combine(unconditional: Tensor, conditional: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Guided prediction u + scale (c - u) (2207.12598); `rescale` in [0, 1] moves its spread back towards c's.

    Both: [B,...]. The rescaling (2305.08891, section 3.4) multiplies by std(c) / std(guided), per sample.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0.0:
        return guided
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return rescale * (guided * ratio) + (1 - rescale) * guided
