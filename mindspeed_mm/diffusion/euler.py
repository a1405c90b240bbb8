"""The Euler step along the path from noise to data."""

from torch import Tensor


def step(latents: Tensor, velocity: Tensor, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
    """latents at `sigma` -> latents at `sigma_next`; computed in fp32, returned in the velocity's dtype."""
    return (latents.float() + (sigma_next - sigma) * velocity).to(velocity.dtype)
