"""A micro-batch reads nothing from the device: where it did, the host would wait for everything that was queued.

The device is torch's meta device. It computes nothing, so a read of a value, or of a number of real tokens, is an error.
"""

import collections
import contextlib
import dataclasses
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from rank_runs import Layout, Run
from ranks import run_ranks
from tiny_denoiser import CONFIG as SIX_BLOCKS
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
CONFIG = dataclasses.replace(SIX_BLOCKS, num_layers=(1, 2, 1))  # a block of each kind
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


class HostTensor(torch.Tensor):
    """A tensor on the host, as what is computed from it."""


class Reads(TorchFunctionMode):
    """Counts what the host reads from tensors inside, by method, except from `HostTensor`s."""

    NAMES = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero")

    def __init__(self):
        super().__init__()
        self.seen: collections.Counter[str] = collections.Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.NAMES and not isinstance(args[0], HostTensor):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def reads_and_waits(micro_batches: int, dtype: str) -> tuple[dict[str, int], int]:
    """What a step reads, and how often it waits for the device, with an objective that reads nothing."""
    platform = CpuPlatform()
    waits = mock.Mock(side_effect=platform.synchronize)
    platform.synchronize = waits
    network = build_denoiser(CONFIG, ParallelContext.current(), seed=0, dtype=dtype).train()
    settings = OptimizerSettings(lr_decay_iters=10, initial_loss_scale=2.0**10)  # no step overflows
    engine = MegatronEngine(network, ParallelContext.current(), platform, settings)
    engine.schedule(micro_batches)
    weight = next(network.parameters())
    if dtype == "fp16":  # see test_the_loss_scale_lies_on_the_host
        scaler = engine.optimizer.grad_scaler
        vars(scaler).update({k: v.as_subclass(HostTensor) for k, v in vars(scaler).items() if torch.is_tensor(v)})

    def objective(net, batch) -> Loss:
        return Loss(weight.float().square().mean(), Work(), (), {"part": weight.float().mean().detach()})

    step = TrainStep(engine, objective, OptimizerStep(engine, AdaptiveClip(0.9), Ema(engine, 0.9), 5), micro_batches)
    step(iter([None] * micro_batches))
    waits.reset_mock()
    with Reads() as reads:
        step(iter([None] * micro_batches))
    return dict(reads.seen), waits.call_count


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_step_reads_once_and_never_waits_whatever_its_micro_batches(dtype):
    """Norm, overflow and losses together, before the update."""
    for micro_batches in (1, 3):
        ((reads, waits),) = run_ranks(reads_and_waits, 1, micro_batches, dtype)
        assert reads == {"tolist": 1}
        assert waits == 0


class FarTensor(torch.Tensor):
    """A tensor that Megatron makes on the device; `cpu()` gives it to the host."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def far_numbers_of_the_loss_scale() -> list[str]:
    """Numbers of the grad scaler that an engine leaves on the device, at the start and after a resume."""
    made = []

    class Scaler:
        def __init__(self):
            self.min_scale = self._scale = torch.tensor([8.0]).as_subclass(FarTensor)

        scale = property(lambda self: self._scale)

        def load_state_dict(self, state):
            self._scale = state["scale"].as_subclass(FarTensor)

        inv_scale = property(lambda self: self._scale.reciprocal())

    network = build_denoiser(CONFIG, ParallelContext.current(), seed=0, dtype="fp16").train()
    settings = OptimizerSettings(lr_decay_iters=10)
    with mock.patch("megatron.core.optimizer.DynamicGradScaler", side_effect=lambda **_: Scaler()):
        engine = MegatronEngine(network, ParallelContext.current(), CpuPlatform(), settings)
    for scale in (8.0, 4.0):
        made += [name for name, value in vars(engine.optimizer.grad_scaler).items() if isinstance(value, FarTensor)]
        assert engine.loss_scale() == scale
        engine.load_counters({"step": 0, "grad_scaler": {"scale": torch.tensor([4.0])}})
    return made


def test_the_loss_scale_lies_on_the_host():
    """Each micro-batch asks for it. Megatron makes its tensors on the device."""
    assert run_ranks(far_numbers_of_the_loss_scale, 1) == [[]]


def object_collectives_and_waits(steps: int) -> tuple[int, int]:
    """How often a trainer's loop sends Python objects to other ranks, and waits for its device."""
    run = Run(Layout(micro_batch=2))
    trainer = run.trainer(train_iters=steps)
    names = ("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list")
    with contextlib.ExitStack() as stack:
        spies = [stack.enter_context(mock.patch.object(dist, name, wraps=getattr(dist, name))) for name in names]
        spies.append(stack.enter_context(mock.patch.object(trainer.platform, "synchronize")))
        trainer.fit()
    return sum(spy.call_count for spy in spies[:-1]), spies[-1].call_count


def test_a_step_of_the_trainer_sends_no_objects_and_waits_for_nothing():
    """Objects of all ranks would grow with their number; a skipped step alone gathers its files' names."""
    found = [run_ranks(object_collectives_and_waits, 2, steps) for steps in (2, 4)]
    assert found[0] == found[1]
    assert {waits for _, waits in found[1]} == {0}
