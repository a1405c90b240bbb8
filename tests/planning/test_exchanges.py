"""The collectives of a step on paper are those that a rank of 512 issues: kind, count, bytes and group.

The ranks are torch's fake group. One process runs the program of rank 0; nobody answers.
"""

import collections
import dataclasses
import sys
from pathlib import Path
from unittest import mock

import pytest
import tiny_denoiser
import torch
from ranks import from_own_process

from mindspeed_mm import types
from mindspeed_mm.planning import exchanges
from mindspeed_mm.planning.job import Job
from mindspeed_mm.planning.memory import Layout

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
CONFIG = dataclasses.replace(tiny_denoiser.CONFIG, num_heads=8)
GRID, TEXT = (2, 8, 8), 16
CASES = {
    "TP 8 x DP 64": (Layout(8, 1, 64, "none"), "bf16", True, 2),
    "TP 4 x CP 2 x DP 64, blocks again": (Layout(4, 2, 64, "blocks"), "fp32", True, 1),
    "TP 2 x DP 2": (Layout(2, 1, 2, "feed-forwards"), "bf16", True, 1),
    "DP 4, optimizer not shared": (Layout(1, 1, 4, "none"), "fp32", False, 2),
}


def job_of(name: str) -> Job:
    layout, dtype, shared, micro_batches = CASES[name]
    return Job(
        "", "", CONFIG, (9, 128, 128), GRID, TEXT, dtype, 0,
        distributed_optimizer=shared,
        global_batch=None if micro_batches == 1 else layout.data * micro_batches,
    )  # fmt: skip


def issued(name: str) -> dict:
    """Collectives of a whole step on rank 0, by the step and the engine that training uses."""
    import torch.distributed as dist
    from collectives import CollectiveCounter
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from mindspeed_mm.config.optimizer import OptimizerSettings
    from mindspeed_mm.models.build import build_denoiser
    from mindspeed_mm.optim.adaptive_clip import Decision, FixedClip
    from mindspeed_mm.optim.step import OptimizerStep
    from mindspeed_mm.parallel.context import ParallelContext
    from mindspeed_mm.parallel.megatron_engine import MegatronEngine
    from mindspeed_mm.platforms.cpu import CpuPlatform
    from mindspeed_mm.training import signals
    from mindspeed_mm.training.metrics import Work
    from mindspeed_mm.training.step import Loss, TrainStep
    from mindspeed_mm.types import TORCH_DTYPES, TextFeatures

    class NeverSkips(FixedClip):
        """What a rank receives here is garbage, maybe not finite."""

        def decide(self, norm: float) -> Decision:
            return Decision()

    layout, dtype, shared, micro_batches = CASES[name]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=layout.cards)
    parallel = ParallelContext.start("fake", layout.tensor, layout.context, layout.tensor > 1)
    blocks = sum(CONFIG.num_layers)
    network = build_denoiser(
        CONFIG,
        parallel,
        dtype=dtype,
        seed=0,
        recompute_blocks=blocks if layout.recompute == "blocks" else 0,
        recompute_feed_forwards=blocks if layout.recompute == "feed-forwards" else 0,
    ).train()
    settings = OptimizerSettings(use_distributed_optimizer=shared, lr_decay_iters=10)
    engine = MegatronEngine(network, parallel, CpuPlatform(), settings, network.units())
    engine.schedule(layout.data * micro_batches)
    floats = {"dtype": TORCH_DTYPES[dtype]}
    latents = torch.zeros(1, 4, GRID[0], 2 * GRID[1], 2 * GRID[2], **floats)
    text = TextFeatures(
        torch.zeros(1, TEXT, 12, **floats), torch.ones(1, TEXT, dtype=torch.bool), torch.zeros(1, 6, **floats)
    )

    def objective(net, batch) -> Loss:
        return Loss(net(latents, torch.full((1,), 0.5), text).float().square().mean(), Work(), ())

    step = TrainStep(engine, objective, OptimizerStep(engine, NeverSkips(0), None, 5), micro_batches)
    names = ("tensor", "context", "data_and_context", "data", "everyone")
    groups = {name: getattr(parallel, name) for name in names}
    batches = iter([None] * micro_batches)
    # as in a large network, where no input is so small that it is kept
    with CollectiveCounter(groups) as counter, mock.patch.object(types, "LEAST_RECOMPUTED_BYTES", 0):
        step(batches)
        signals.agreed(None)
    parallel.stop()
    return {(one.kind, one.group, one.bytes): count for one, count in counter.seen.items()}


def all_issued() -> dict:
    return {name: issued(name) for name in CASES}


@pytest.fixture(scope="module")
def found() -> dict:
    return from_own_process(all_issued)


def groups_as_one(layout: Layout) -> dict[str, str]:
    """Groups with the same ranks have one name in the count, the first."""
    sizes, first = exchanges.group_sizes(layout), {}
    same = {
        "data": "data_and_context" if layout.context == 1 else "data",
        "everyone": "data_and_context" if sizes["data_and_context"] == layout.cards else "everyone",
    }
    return {name: first.setdefault(name, same.get(name, name)) for name in sizes}


@pytest.mark.parametrize("name", CASES)
def test_the_collectives_of_a_step_are_those_that_a_rank_issues(found, name):
    layout = CASES[name][0]
    called = groups_as_one(layout)
    planned = collections.Counter()
    for one in exchanges.of_step(job_of(name), layout):
        planned[one.kind, called[one.group], one.bytes] += one.count
    sizes = exchanges.group_sizes(layout)
    alone = [key for key in found[name] if sizes[key[1]] == 1]  # of one rank, which exchange nothing
    assert dict(planned) == {key: count for key, count in found[name].items() if key not in alone}


def test_a_step_exchanges_as_much_at_512_data_ranks_as_at_8():
    """As many collectives; gradients and weights grow by the padding of their buffer alone."""
    few, many = (exchanges.of_step(job_of("TP 2 x DP 2"), Layout(8, 1, 2 * ranks, "none")) for ranks in (64, 512))
    assert [(one.kind, one.group, one.count) for one in few] == [(one.kind, one.group, one.count) for one in many]
    assert all(one.bytes <= 1.01 * other.bytes for one, other in zip(many, few, strict=True))


def test_a_table_of_a_step_has_a_line_for_each_kind():
    layout = CASES["TP 8 x DP 64"][0]
    rows = exchanges.of_step(job_of("TP 8 x DP 64"), layout)
    text = exchanges.table(rows, exchanges.group_sizes(layout))
    assert len(text.splitlines()) == 1 + len(rows)
    assert "data_and_context of 64" in text
