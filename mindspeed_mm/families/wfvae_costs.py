"""Memory of WFVAE by formulas over sizes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the config's file imports this one
    from mindspeed_mm.families.wfvae import WFVAEConfig

# Tensors of the encoder's first level that are alive at the peak: counted on a dozen configs, since the peak moves between
# a block and the wavelets beside it. A chunk also has the last frames of the one before it.
_ALIVE, _CARRIED_FRAMES = 4.2, 3.8


def encode_bytes(config: "WFVAEConfig", size: tuple[int, int, int], itemsize: int) -> int:
    """Peak bytes of encoding one video of `size` (frames, height, width) without gradients, beside weights and the video.

    itemsize: bytes of a number of weights and activations. The peak is at the first level, behind a Haar transform that
    halves time, height and width. `tests/families/test_wfvae_costs.py` counts the tensors and compares.
    """
    frames, height, width = size
    stride = config.strides[0]
    chunked = config.use_tiling and frames >= 2 * stride + 1
    passed = stride + 1 if chunked else frames  # the first chunk, with frame 0
    alive = _ALIVE * ((passed + 1) // 2) + (_CARRIED_FRAMES if chunked else 0)
    latents = 2 * config.latent_dim * ((frames - 1) // stride + 1) / config.strides[1] ** 2  # mean and log-variance
    return int((alive * config.base_channels / 4 + latents) * height * width * itemsize)
