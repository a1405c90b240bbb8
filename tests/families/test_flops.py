"""The FLOP formula against torch's own counter."""

import dataclasses

import pytest
import torch
from tiny_denoiser import CONFIG
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mindspeed_mm.adapters.attach import attach_trained
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.families.base import Share
from mindspeed_mm.families.sparse_ummdit import parameters
from mindspeed_mm.families.sparse_ummdit_costs import attention_flops, forward_flops
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.training.denoising import TrainedShares
from mindspeed_mm.types import TextFeatures

EXTENT, TEXT = (3, 4, 5), 7


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"double_ff": False},
        {"sparse_n": (1, 4, 1), "skip_connection": False},
        {"sparse1d": False},
        {"num_layers": (2, 2, 4, 2, 2), "sparse_n": (1, 2, 4, 2, 1), "out_channels": 6},
    ],
    ids=str,
)
def test_the_formula_equals_torchs_counter(change):
    config = dataclasses.replace(CONFIG, **change)
    network = build_denoiser(config, ParallelContext.current(), seed=1).train()
    text = TextFeatures(torch.randn(2, TEXT, 12), torch.ones(2, TEXT, dtype=torch.bool), torch.randn(2, 6))
    latents = torch.randn(2, 4, 3, 8, 10, requires_grad=True)
    # The plain attention, because the counter does not know the CPU's fused one.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = network(latents, torch.rand(2), text)
    forward = 2 * forward_flops(config, EXTENT, TEXT)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == pytest.approx(2 * forward, rel=5e-3)


@pytest.mark.parametrize("part", ["all", "attention", "adapter"])
def test_a_step_with_frozen_weights_equals_torchs_counter(part):
    network = build_denoiser(CONFIG, ParallelContext.current(), seed=1).train()
    kinds = parameters(CONFIG)
    if part == "adapter":
        adapter = AdapterConfig(kind="lora", rank=2, targets=("attention", "feed_forward"))
        attach_trained(network, CONFIG, adapter, ParallelContext.current(), seed=2)
    elif part == "attention":
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(kinds[name].kind == "attention")
    text = TextFeatures(torch.randn(2, TEXT, 12), torch.ones(2, TEXT, dtype=torch.bool), torch.randn(2, 6))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 4, 3, 8, 10), torch.rand(2), text).sum().backward()
    share = Share(batch=2, video_tokens=60, text_tokens=TEXT, itemsize=4)
    shares = TrainedShares.of(network)
    assert shares.own == {"all": 1.0, "adapter": 0.0}.get(part, shares.own) and (shares.added > 0) == (
        part == "adapter"
    )
    counted, formula = counter.get_total_flops(), shares.step_flops(CONFIG, share, 0)
    assert formula == pytest.approx(counted, rel=0.01 if part == "all" else 0.06)
    if part != "all":
        assert formula < 0.95 * TrainedShares().step_flops(CONFIG, share, 0)


def test_attention_at_v1_5_size_follows_its_sparsity():
    """121x576x1024: 36,864 video tokens; the text, which every part sees, costs a little."""
    tokens, text, width = 16 * 36 * 64, 512, 3072
    dense = attention_flops(tokens, text, width, 1)
    for sparsity in (2, 4, 8):
        ratio = dense / attention_flops(tokens, text, width, sparsity)
        assert 0.78 * sparsity < ratio < sparsity
    layers = {1: 4, 2: 8, 4: 12, 8: 8}
    sparse = sum(count * attention_flops(tokens, text, width, k) for k, count in layers.items())
    assert 32 * dense / sparse == pytest.approx(2.6, abs=0.1)
