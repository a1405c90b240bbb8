"""The baseline of the benchmarks computes what the network computes, or the comparison would mean nothing."""

import sys
from pathlib import Path

import pytest
import torch
from test_compile import CONFIG

from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.types import TORCH_DTYPES, TextFeatures

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_the_network(masked, dtype, tolerance):
    from original_way import OriginalWay

    network = build_denoiser(CONFIG, ParallelContext.current(), seed=1, dtype=dtype).train()
    with torch.no_grad():
        for parameter in network.transformer_blocks.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)  # fresh weights hardly let the text through
    torch.manual_seed(0)
    text = TextFeatures(torch.randn(2, 5, 12), torch.rand(2, 5) > 0.4, torch.randn(2, 6))
    text.keep[:, 0] = True
    keep = torch.rand(2, 3, 6, 10) > 0.6 if masked else None
    latents, text = torch.randn(2, 4, 3, 6, 10).to(TORCH_DTYPES[dtype]), text.to(dtype=TORCH_DTYPES[dtype])
    inputs = (latents, torch.rand(2), text, keep)
    weights = torch.randn(2, 4, 3, 6, 10)
    found = []
    for way in (network, OriginalWay(network), OriginalWay(network, one_row=True)):
        network.zero_grad()
        out = way(*inputs)
        (out * weights).sum().backward()
        found.append([out.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    for a, *others in zip(*found, strict=True):
        for b in others:
            assert (a - b).abs().max() <= tolerance * b.abs().max() + 1e-6
