"""What lives on the host beside a simulated NPU: blocks of an adapter's base, the optimizer's state."""

import dataclasses
from unittest import mock

import torch
from rank_runs import DENOISER, FakeBatch, FakeEncoders
from simulation.device import OnHost

from mindspeed_mm.adapters.attach import attach_trained
from mindspeed_mm.adapters.base import hold_base, loads_on_host
from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.parallel import host_state
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.megatron_engine import MegatronEngine
from mindspeed_mm.parallel.seeds import generator
from mindspeed_mm.platforms.npu import NpuPlatform


class Counting(OnHost):
    """Also counts the bytes of blocks, which are all that is uint8, on their way from the host."""

    moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default and args[0].dtype == torch.uint8:
            into, source = args[:2]
            self.moved += into.nbytes if into.device.type == "npu" and source.device.type == "cpu" else 0
        return super().__torch_dispatch__(func, types, args, kwargs)


def both_ways(form: str | None) -> tuple[bool, list[int], list[tuple[int, int]]]:
    """Two forward and backward passes with streamed blocks, and two without.

    Returns whether all gradients are equal; the bytes of each block on the host; and for each streamed pass the bytes of
    blocks that the device was given, and those that moved beside another block's work.
    """
    adapter = AdapterConfig(kind="lora", rank=2, base_weights=form)
    wanted, _, nothing = _passes(adapter)
    found, sizes, moved = _passes(dataclasses.replace(adapter, stream_blocks=2))
    assert len(found) > 40 and nothing == [(0, 0)] * 2
    return all(map(torch.equal, found, wanted)), sizes, moved


def _passes(adapter: AdapterConfig) -> tuple[list[torch.Tensor], list[int], list[tuple[int, int]]]:
    platform, parallel = NpuPlatform("off"), ParallelContext.current()
    device, sample = platform.device(0), FakeEncoders()(FakeBatch((0,)))
    with Counting() as counted:
        home = "cpu" if loads_on_host(adapter) else device
        network = build_denoiser(DENOISER, parallel, device=home, seed=3).train()
        stream = None
        if loads_on_host(adapter):
            stream = hold_base(network, DENOISER, adapter, device, platform.copies())
        for name, branch in attach_trained(network, DENOISER, adapter, parallel, seed=7).items():
            branch.lora_B.data.copy_(torch.randn(branch.lora_B.shape, generator=generator(0, name)))
        moved = []
        for _ in range(2):
            counted.moved = 0
            before = 0 if stream is None else stream.moved_beside_bytes
            text = sample.conditions.text.to(device)
            velocity = network(sample.latents.to(device), torch.full((1,), 0.5, device=device), text)
            velocity.square().mean().backward()
            moved.append((counted.moved, 0 if stream is None else stream.moved_beside_bytes - before))
        gradients = [p.grad.cpu() for p in network.parameters() if p.requires_grad]
    sizes = [] if stream is None else [sum(piece.numel() for piece in home) for home in stream._homes]
    return gradients, sizes, moved


def offloaded() -> tuple[bool, set[str]]:
    """Whether two updates with the optimizer's state on the host give all numbers of two without; devices of that state."""
    (wanted, _), (found, devices) = _updates(False), _updates(True)
    return all(map(torch.equal, found, wanted)), devices


def _updates(offload: bool) -> tuple[list[torch.Tensor], set[str]]:
    platform, parallel = NpuPlatform("off"), ParallelContext.current()
    settings = OptimizerSettings(lr_decay_iters=9, use_distributed_optimizer=True, cpu_offload=offload)
    with OnHost(), mock.patch.object(host_state, "UPDATE_PART", 100):
        network = torch.nn.Module()
        for index in range(5):
            value = torch.randn(index + 3, 20, generator=generator(0, index)).bfloat16()
            network.register_parameter(f"p{index}", torch.nn.Parameter(value.to(platform.device(0))))
        engine = MegatronEngine(network, parallel, platform, settings)
        engine.schedule(1)
        average = Ema(engine, 0.99)
        for _ in range(2):
            engine.start_step()
            with engine.micro_batch(last=True):
                engine.backward(sum(parameter.float().square().sum() for parameter in network.parameters()))
            engine.finish_gradients()
            engine.update()
            average.update()
        state = [shard.main for shard in engine.main_shards()] + average.averages()
        state += [value for values in engine.moments().values() for value in values]
        numbers = [value.detach().cpu() for value in [*state, *network.parameters()]]
    return numbers, {value.device.type for value in state}
