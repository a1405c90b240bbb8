"""A run whose optimizer's state is on the host is the run without it, to the last bit, and either goes on with the other's
checkpoint.
"""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
import torch
from rank_runs import Layout, Run
from ranks import run_ranks

from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.parallel import host_state
from mindspeed_mm.platforms.copies import Copies

STEPS = 2
SMALL_PART = 1000  # numbers, so that a step has many parts


class Counted(Copies):
    """Counts the numbers that an update moves."""

    def __init__(self):
        self.fetched = self.stored = 0

    def fetch(self, places, homes, after):
        self.fetched += sum(home.numel() for home in homes)
        return super().fetch(places, homes, after)

    def store(self, homes, places, after):
        self.stored += sum(home.numel() for home in homes)
        return super().store(homes, places, after)


def made(layout: Layout, offload: bool, **options) -> Run:
    return Run(layout, optimizer={"cpu_offload": offload}, **options)


def state(run: Run) -> list[torch.Tensor]:
    """The network's weights, main weights, moments and averages."""
    shards = run.engine.main_shards()
    values = [*run.network.parameters(), *(shard.main for shard in shards), *run.ema.averages()]
    return [*values, *(value for values in run.engine.moments().values() for value in values)]


def both(layout: Layout) -> tuple[bool, int, int, int]:
    """Whether all is equal; numbers that each update fetched and stored; numbers of this rank's shards."""
    with mock.patch.object(host_state, "UPDATE_PART", SMALL_PART):
        plain, moved = made(layout, False), Counted()
        with mock.patch("mindspeed_mm.platforms.cpu.CpuPlatform.copies", return_value=moved):
            hosted = made(layout, True)
        results = [run.steps(STEPS) for run in (plain, hosted)]
        curves = [[(one.loss, one.report.gradient_norm) for one in steps] for steps in results]
        plain.engine.publish()
        hosted.engine.publish()
        equal = all(torch.equal(a, b) for a, b in zip(state(plain), state(hosted), strict=True))
    numbers = sum(shard.main.numel() for shard in hosted.engine.main_shards())
    updates = sum(one.report.skipped is None for one in results[1])  # in fp16 the first step overflows
    return equal and curves[0] == curves[1], moved.fetched // updates, moved.stored // updates, numbers


@pytest.mark.parametrize(
    ("ranks", "layout", "kinds"),
    [
        (2, Layout(tensor=2, sequence_parallel=True, micro_batch=2, dtype="bf16"), 4),
        (2, Layout(micro_batch=2, dtype="bf16", overlap=True, clip_decay=0.9), 4),
        (1, Layout(micro_batch=4, dtype="fp16", distributed_optimizer=False), 4),
        (1, Layout(micro_batch=4, lr_multipliers=("*.attn1.*=0.1",), train_only=("transformer_blocks.0.*",)), 3),
        (2, Layout(micro_batch=2, dtype="bf16", adapter=AdapterConfig(kind="lora", rank=2)), 3),
    ],
    ids=str,
)
def test_every_number_is_that_of_a_run_without_it(ranks, layout, kinds):
    """In fp32, as adapters are, the main weights are the network's own and stay on the device."""
    for equal, fetched, stored, numbers in run_ranks(both, ranks, layout):
        assert equal
        assert fetched == stored == kinds * numbers > 8 * SMALL_PART


def across(root: str, layout: Layout, form: str, before: bool) -> bool:
    """Stops a run and goes on with the state elsewhere. True if this is a run that never stopped."""
    straight = made(layout, not before)
    straight.steps(STEPS + 1)
    stopped = made(layout, before, checkpoint=CheckpointConfig(save=root, format=form))
    stopped.steps(STEPS)
    stopped.saver.save()
    resumed = made(layout, not before)
    resumed.saver.resume(Path(root))
    resumed.steps(1)
    return all(torch.equal(a, b) for a, b in zip(state(resumed), state(straight), strict=True))


@pytest.mark.parametrize(("form", "before"), [("torch", True), ("torch_dist", False)])
def test_a_run_goes_on_from_a_checkpoint_of_the_other_kind(tmp_path, form, before):
    assert all(run_ranks(across, 2, str(tmp_path), Layout(micro_batch=2, dtype="bf16"), form, before))


def test_the_hosts_memory_is_checked():
    host_state._check(4 * 2**30, 16 * 2**30, ranks=4)
    with pytest.raises(
        ConfigError, match=r"^--optimizer-cpu-offload: the state of the 5 .* takes 20.0 GiB, and 16.0 GiB .*$"
    ):
        host_state._check(4 * 2**30, 16 * 2**30, ranks=5)
    assert psutil.virtual_memory().available > 2**20


def test_the_memory_that_is_free_decides(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=7))
    settings, network = OptimizerSettings(cpu_offload=True), torch.nn.Linear(2, 2)
    on_host = host_state.main_weights_on_host(settings, network, SimpleNamespace())
    with pytest.raises(ConfigError, match=r"0\.0 GiB of its memory are free"), on_host:
        pass
