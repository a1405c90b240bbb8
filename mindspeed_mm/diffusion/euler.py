"""The Euler step along the path from noise to data, and the estimated end of the path."""

from torch import Tensor


def step(latents: Tensor, velocity: Tensor, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
    """latents at `sigma` -> latents at `sigma_next`; computed in fp32, returned in the velocity's dtype."""
    return (latents.float() + (sigma_next - sigma) * velocity).to(velocity.dtype)


def clean_estimate(latents: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """The clean latents to which the straight path through `latents` at `sigma` leads: one step to noise level 0."""
    return step(latents, velocity, sigma, 0.0)
