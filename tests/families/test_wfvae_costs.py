"""The replay of WFVAE's memory equals the peak of torch's allocator in real passes, on configs of random seeds."""

import dataclasses
import random

import pytest
import torch
from torch import nn

from mindspeed_mm.families.wfvae import FAMILY, WFVAEConfig
from mindspeed_mm.models.build import build_autoencoder
from mindspeed_mm.schema import check

HALVES_TIME = {
    "l1_downsample_block": "Spatial2xTime2x3DDownsample",
    "l1_downsample_wavelet": "HaarWaveletTransform3D",
    "l1_upsample_block": "Spatial2xTime2x3DUpsample",
    "l1_upsample_wavelet": "InverseHaarWaveletTransform3D",
}


def drawn(seed: int) -> tuple[WFVAEConfig, tuple[int, int, int]]:
    """A config and the size of a video; odd seeds decode in tiles, which layer norm alone allows."""
    draw = random.Random(seed)
    layer = seed % 2 == 1 or draw.random() < 0.7
    width = draw.choice((16, 24, 32)) if layer else 32
    config = WFVAEConfig(
        base_channels=width,
        latent_dim=draw.choice((4, 8, 32)),
        encoder_num_resblocks=draw.choice((1, 2)),
        decoder_num_resblocks=draw.choice((1, 2, 3)),
        encoder_energy_flow_hidden_size=draw.choice((16, 24)) if layer else 32,
        decoder_energy_flow_hidden_size=draw.choice((16, 24)) if layer else 32,
        connect_res_layer_num=draw.choice((0, 1, 2)),
        use_attention=draw.random() < 0.7,
        norm_type="layernorm" if layer else "groupnorm",
        t_interpolation=draw.choice(("nearest", "trilinear")),
        use_tiling=layer and draw.random() < 0.7,
        use_spatial_tiling=seed % 2 == 1,
        spatial_tile=draw.choice((32, 48)),
        spatial_tile_overlap=draw.choice((8, 16)),
        **(HALVES_TIME if draw.random() < 0.6 else {}),
    )
    check(config)
    return config, (1 + config.strides[0] * draw.choice((0, 1, 2, 3)), 8 * draw.randint(4, 9), 8 * draw.randint(4, 9))


def allocated(call) -> int:
    """Peak bytes that torch's allocator gave while `call` ran, with its result."""
    with (
        torch.no_grad(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        result = call()
    del result
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("seed", range(10))
def test_the_peak_of_a_pass_is_within_five_percent_of_the_allocator(seed):
    config, size = drawn(seed)
    autoencoder = build_autoencoder(config).eval()
    (frames, height, width), strides = size, config.strides
    grid = ((frames - 1) // strides[0] + 1, height // strides[1], width // strides[2])
    z, video = torch.zeros(1, config.latent_dim, *grid), torch.zeros(1, 3, *size)
    assert FAMILY.decode_bytes is not None
    assert FAMILY.encode_bytes is not None
    for planned, call in (
        (FAMILY.decode_bytes(config, size, 4), lambda: autoencoder.decode(z)),
        (FAMILY.encode_bytes(config, size, 4), lambda: autoencoder.encode_moments(video)),
    ):
        found = allocated(call)
        assert 0.95 * planned <= found <= 1.05 * planned + most_padding(autoencoder)


def most_padding(autoencoder) -> int:
    """Bytes that a processor may add to a convolution's copy of its weights: oneDNN pads channels to blocks of up to 64."""
    weights = [layer.weight for layer in autoencoder.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)]
    return max(4 * weight[0, 0].numel() * (-weight.shape[0] % 64) * weight.shape[1] for weight in weights)


def test_tiles_bound_the_memory_of_a_frame():
    config = WFVAEConfig(norm_type="layernorm", use_tiling=True)
    tiled = dataclasses.replace(config, use_spatial_tiling=True)
    assert FAMILY.decode_bytes is not None
    whole, tiles = (FAMILY.decode_bytes(one, (33, 1088, 1920), 2) for one in (config, tiled))
    assert tiles < 0.2 * whole
