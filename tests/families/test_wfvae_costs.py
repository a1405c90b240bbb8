"""The formula of the encoder's memory equals the tensors of a real pass, on the meta device."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from mindspeed_mm.families.wfvae import FAMILY, WFVAEConfig
from mindspeed_mm.models.build import build_autoencoder
from mindspeed_mm.types import TORCH_DTYPES

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
# v1.5's autoencoder
V1_5 = WFVAEConfig(
    base_channels=160,
    latent_dim=32,
    encoder_energy_flow_hidden_size=128,
    connect_res_layer_num=1,
    norm_type="layernorm",
    use_tiling=True,
    l1_downsample_block="Spatial2xTime2x3DDownsample",
    l1_downsample_wavelet="HaarWaveletTransform3D",
    l1_upsample_block="Spatial2xTime2x3DUpsample",
    l1_upsample_wavelet="InverseHaarWaveletTransform3D",
)
NARROW = dataclasses.replace(V1_5, base_channels=96, encoder_energy_flow_hidden_size=64)


@pytest.mark.parametrize(
    ("config", "frames", "dtype"),
    [
        (V1_5, 41, "bf16"),
        (V1_5, 121, "fp32"),
        (NARROW, 25, "fp32"),
        (dataclasses.replace(NARROW, use_tiling=False), 25, "fp32"),
        (WFVAEConfig(norm_type="groupnorm"), 13, "fp32"),
    ],
    ids=["v1.5", "v1.5 long", "narrow", "whole", "4x8x8"],
)
def test_the_peak_of_encoding_is_within_six_percent(config, frames, dtype):
    from tensor_memory import TensorMemory

    autoencoder = build_autoencoder(config, device="meta", dtype=dtype)
    autoencoder.reset_statistics("meta")
    height, width = 96, 160
    with torch.no_grad(), TensorMemory() as memory:
        video = torch.empty(1, 3, frames, height, width, dtype=TORCH_DTYPES[dtype], device="meta")
        before = memory.now
        autoencoder.encode_moments(video)
    assert FAMILY.encode_bytes is not None
    planned = FAMILY.encode_bytes(config, (frames, height, width), TORCH_DTYPES[dtype].itemsize)
    assert planned == pytest.approx(memory.peak - before, rel=0.06)
