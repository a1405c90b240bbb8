"""A small autoencoder and its inputs."""

import dataclasses

import torch

from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.wfvae import WFVAE

TINY = WFVAEConfig(
    base_channels=8,
    latent_dim=4,
    encoder_num_resblocks=1,
    decoder_num_resblocks=1,
    encoder_energy_flow_hidden_size=8,
    decoder_energy_flow_hidden_size=8,
    connect_res_layer_num=1,
    norm_type="layernorm",
    t_interpolation="trilinear",
    scale=(0.7, 1.3, 1.6, 0.9),
    shift=(-0.2, 0.3, 1.1, -0.6),
    use_tiling=True,
)
TINY_4 = TINY  # the default blocks: level 1 keeps time
TINY_8 = dataclasses.replace(
    TINY,
    l1_downsample_block="Spatial2xTime2x3DDownsample",
    l1_downsample_wavelet="HaarWaveletTransform3D",
    l1_upsample_block="Spatial2xTime2x3DUpsample",
    l1_upsample_wavelet="InverseHaarWaveletTransform3D",
)
CONFIGS = {4: TINY_4, 8: TINY_8}


def make_vae(config):
    """A small autoencoder whose weights are far enough from zero that every path counts."""
    torch.manual_seed(0)
    vae = WFVAE(config).eval()
    for parameter in vae.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return vae


def whole(vae):
    """The same autoencoder without chunks."""
    twin = WFVAE(dataclasses.replace(vae.config, use_tiling=False)).eval()
    twin.load_state_dict(vae.state_dict())
    return twin


def random_video(frames, height=16, width=16, batch=1, seed=0):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_latents(frames, height=2, width=2, batch=1, seed=0):
    return torch.randn(batch, 4, frames, height, width, generator=torch.Generator().manual_seed(seed))
