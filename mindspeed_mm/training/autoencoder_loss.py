"""Loss of the autoencoder: reconstruction, Kullback-Leibler divergence and wavelet flow (WF-VAE, 2411.17459)."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mindspeed_mm.config.autoencoder import DISTANCES, AutoencoderLossConfig
from mindspeed_mm.models.wfvae.model import WFVAE

LEVELS = ("l1", "l2")  # names, as in the networks, for the levels of subbands below the first


class AutoencoderLoss(nn.Module):
    """An autoencoder whose forward pass returns its loss, so that the engine can wrap it like any other network."""

    def __init__(self, autoencoder: WFVAE, config: AutoencoderLossConfig):
        """autoencoder: must take whole clips (use_tiling false), since the loss compares subbands of whole clips."""
        super().__init__()
        if autoencoder.config.use_tiling:
            raise ValueError("an autoencoder with use_tiling cannot be trained: give it use_tiling false")
        self.autoencoder = autoencoder
        self.config = config

    def forward(
        self, video: Tensor, noise: Tensor, draws: Sequence[torch.Generator] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, a scalar, and its parts, for clips [B,3,T,H,W] in [-1,1].

        noise: standard normal, in the shape of the latents; draws: a generator per clip, which dropout needs. Each part is
        a sum over one clip, divided by the number of its values and averaged over clips.
        """
        with recorded_bands(self.autoencoder) as bands:
            mean, logvar = self.autoencoder.encode_moments(video, draws)
            z = mean + torch.exp(0.5 * logvar) * noise.to(mean)
            output = self.autoencoder.decode_unscaled(z, draws)
        values = video.numel()
        parts = {
            "reconstruction": self._distance(output, video) / values,
            "kl": kl_divergence(mean, logvar).sum() / values,
            "wavelet": sum(self._distance(*bands[level]) for level in LEVELS) / values,
        }
        loss = (
            parts["reconstruction"]
            + self.config.kl_weight * parts["kl"]
            + self.config.wavelet_weight * parts["wavelet"]
        )
        return loss, {name: part.detach() for name, part in parts.items()}

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Sum of absolute or squared differences, as configured."""
        difference = one.float() - other.float()
        return DISTANCES[self.config.distance](difference)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Kullback-Leibler divergence of posteriors from the standard normal (1312.6114, appendix B): nats, elementwise,
    fp32.
    """
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


@contextlib.contextmanager
def recorded_bands(autoencoder: WFVAE) -> Iterator[dict[str, list[Tensor]]]:
    """Records subbands while the context is open. Returns level -> [encoder's, decoder's].

    The wavelet loss asks the decoder to rebuild the subbands into which the encoder split the video. Hooks on the
    modules that carry them leave the networks' signatures unchanged.
    """
    bands: dict[str, list[Tensor]] = {level: [] for level in LEVELS}
    handles = []
    for level in LEVELS:
        transform = getattr(autoencoder.encoder, f"wavelet_transform_{level}")
        inverse = getattr(autoencoder.decoder, f"inverse_wavelet_transform_{level}")
        keep = bands[level].append
        handles.append(transform.register_forward_hook(lambda module, inputs, output, keep=keep: keep(output)))
        handles.append(inverse.register_forward_pre_hook(lambda module, inputs, keep=keep: keep(inputs[0])))
    try:
        yield bands
    finally:
        for handle in handles:
            handle.remove()
