"""WFVAE, the causal video autoencoder."""

from mindspeed_mm.models.wfvae.model import WFVAE

__all__ = ["WFVAE"]
