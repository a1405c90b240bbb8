"""A micro-batch reads nothing from the device: where it did, the host would wait for everything that was queued.

The device is torch's meta device. It computes nothing, so a read of a value, or of a number of real tokens, is an error.
"""

import collections
import dataclasses
from unittest import mock

import pytest
import torch
from ranks import run_ranks
from tiny_denoiser import CONFIG
from torch.overrides import TorchFunctionMode

from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.optim.adaptive_clip import AdaptiveClip
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.optim.step import OptimizerStep
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.megatron_engine import MegatronEngine
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.training.denoising import Denoising
from mindspeed_mm.training.encoders import FrozenEncoders
from mindspeed_mm.training.metrics import Work
from mindspeed_mm.training.step import Loss, TrainStep
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.types import Batch, Posterior, TextFeatures

DEVICE = torch.device("meta")
FRAMES, HEIGHT, WIDTH, TOKENS = 3, 8, 10, 7


def batch(padded_text: bool, padded_video: bool) -> Batch:
    """Two samples of stored features, as the loader yields them."""
    text, video = torch.ones(2, TOKENS, dtype=torch.bool), torch.ones(2, FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    if padded_text:
        text[:, 5:], text[1, 3:] = False, False
    if padded_video:
        video[1, 2:] = False
    latents = torch.zeros(2, CONFIG.in_channels, FRAMES, HEIGHT, WIDTH)
    features = TextFeatures(torch.zeros(2, TOKENS, CONFIG.caption_channels), text, torch.zeros(2, 6))
    return Batch(Posterior(latents, latents), video, features, None, ("a", "b"), ((0, 0), (0, 1)))


def objective() -> Denoising:
    autoencoder = build_autoencoder(WFVAEConfig(latent_dim=CONFIG.in_channels), device=DEVICE)
    autoencoder.reset_statistics(DEVICE)
    task = FlowMatchingTask(DiffusionConfig(), CONFIG, seed=0)
    return Denoising(FrozenEncoders(autoencoder, None, DEVICE, 0), task)


@pytest.mark.parametrize("padded_video", [False, True])
@pytest.mark.parametrize("padded_text", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_micro_batch_reads_nothing_from_the_device(padded_text, padded_video, dropout):
    config = dataclasses.replace(CONFIG, dropout=dropout)
    network = build_denoiser(config, ParallelContext.current(), device=DEVICE, seed=None).train()
    loss = objective()(network, batch(padded_text, padded_video))
    loss.value.backward()
    assert loss.value.device == DEVICE
    assert loss.work.flops > 0


def test_a_read_of_the_device_is_found():
    sample = objective().encoders(batch(True, True))
    on_device = sample.conditions.text.to(DEVICE)
    with pytest.raises(RuntimeError, match="meta"):
        int(on_device.keep.any(0).sum())


class Reads(TorchFunctionMode):
    """Counts what the host reads from tensors inside, by method."""

    # Not __float__: AdamW reads its step counts by it, which lie on the host.
    NAMES = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__index__", "nonzero")

    def __init__(self):
        super().__init__()
        self.seen: collections.Counter[str] = collections.Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.NAMES:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def reads_and_waits(micro_batches: int) -> tuple[dict[str, int], int]:
    """What a step reads, and how often it waits for the device, with an objective that reads nothing."""
    platform = CpuPlatform()
    waits = mock.Mock(side_effect=platform.synchronize)
    platform.synchronize = waits
    network = build_denoiser(CONFIG, ParallelContext.current(), seed=0).train()
    engine = MegatronEngine(network, ParallelContext.current(), platform, OptimizerSettings(lr_decay_iters=10))
    engine.schedule(micro_batches)
    weight = next(network.parameters())

    def objective(net, batch) -> Loss:
        return Loss(weight.square().mean(), Work(), ())

    step = TrainStep(engine, objective, OptimizerStep(engine, AdaptiveClip(0.9), Ema(engine, 0.9), 5), micro_batches)
    step(iter([None] * micro_batches))
    waits.reset_mock()
    with Reads() as reads:
        step(iter([None] * micro_batches))
    return dict(reads.seen), waits.call_count


def test_a_step_reads_the_norm_and_the_loss_and_waits_once_whatever_its_micro_batches():
    """The trainer waits once more, to time the step."""
    for micro_batches in (1, 3):
        ((reads, waits),) = run_ranks(reads_and_waits, 1, micro_batches)
        assert sum(reads.values()) <= 2, reads
        assert waits <= 1
