"""Recomputing cheap results in the backward pass changes no bit of a training step."""

import torch
from test_compile import step
from tiny_denoiser import CONFIG

from mindspeed_mm import types
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel.context import ParallelContext


def test_keeping_and_recomputing_give_every_bit(monkeypatch):
    network = build_denoiser(CONFIG, ParallelContext.current(), seed=1).train()
    kept = step(network)
    monkeypatch.setattr(types, "LEAST_RECOMPUTED_BYTES", 0)
    assert all(torch.equal(a, b) for a, b in zip(step(network), kept, strict=True))
