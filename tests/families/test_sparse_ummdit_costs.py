"""The formulas of training memory equal the tensors that real steps keep, for layouts that nobody chose by hand.

The ranks are torch's fake group: gloo's threads hold tensors a little longer than a pass does, and so many that a count of
small networks sees it.
"""

import random
import sys
from pathlib import Path
from unittest import mock

import pytest
import random_cases
import torch
from ranks import from_own_process

from mindspeed_mm import types
from mindspeed_mm.families import sparse_ummdit_costs
from mindspeed_mm.families.base import Share
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.types import TORCH_DTYPES, TextFeatures

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

# world size: (TP, CP)
LAYOUTS = {1: [(1, 1)], 2: [(2, 1), (1, 2)], 4: [(2, 2)]}
CASES = 24


def case(number: int) -> tuple[SparseUMMDiTConfig, tuple[int, int, int], Share]:
    """A random network, grid of video tokens, and share; the number is the seed."""
    draw = random.Random(number)
    sparsity = draw.choice([2, 4])
    world = (1, 1, 2, 2, 4, 1)[number % 6]
    layout = draw.choice(LAYOUTS[world])
    recompute = random_cases.recomputation(draw)
    stages = draw.choice([(2, 2, 2), (2, 4, 2), (2, 2, 2, 2, 2)])
    config = random_cases.network(draw, stages, sparsity, skips=0.7, heads=4, head_dim=32)
    blocks = sum(config.num_layers)
    grid = draw.choice([(2, 16, 16), (3, 16, 16), (2, 12, 24)])
    share = random_cases.share(draw, blocks, grid, layout, recompute, [32, 64, 128])
    return config, grid, share


def remembering():
    """TensorMemory that computes matrix products and attention, nearly all the time of a pass, once for each shape; later
    results have the storage of the first and no numbers.
    """
    from tensor_memory import TensorMemory

    aten = torch.ops.aten
    attention = (
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
    )
    heavy = {aten.mm.default, aten.addmm.default, *(each.default for each in attention)}
    shapes: dict[tuple, list[tuple]] = {}

    class Remembering(TensorMemory):
        def compute(self, func, args, kwargs):
            if func not in heavy:
                return func(*args, **kwargs)
            key = func, *((x.shape, x.stride(), x.dtype) if isinstance(x, torch.Tensor) else x for x in args)
            if key not in shapes:
                found = func(*args, **kwargs)
                shapes[key] = [
                    (x.shape, x.stride(), x.dtype) for x in ((found,) if isinstance(found, torch.Tensor) else found)
                ]
                return found
            made = [torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in shapes[key]]
            return made[0] if len(made) == 1 else tuple(made)

    return Remembering()


def counted(number: int) -> tuple[int, int]:
    """Bytes that a real step on one of the ranks keeps, and its peak."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    config, (t, h, w), share = case(number)
    ranks = share.tensor * share.context
    dist.init_process_group("fake", store=FakeStore(), rank=number % ranks, world_size=ranks)
    parallel = ParallelContext.start("fake", share.tensor, share.context, share.sequence_parallel)
    dtype = {2: "bf16", 4: "fp32"}[share.itemsize]
    network = build_denoiser(
        config,
        parallel,
        dtype=dtype,
        seed=0,
        recompute_blocks=share.recompute_blocks,
        recompute_feed_forwards=share.recompute_feed_forwards,
    ).train()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    floats = {"dtype": TORCH_DTYPES[dtype]}
    # as in a large network, where no result is so small that it is kept
    with mock.patch.object(types, "LEAST_RECOMPUTED_BYTES", 0), remembering() as memory:
        latents = torch.zeros(share.batch, config.in_channels, t, 2 * h, 2 * w, **floats)
        sequence = torch.zeros(share.batch, share.text_tokens, config.caption_channels, **floats)
        text = TextFeatures(
            sequence,
            torch.ones(share.batch, share.text_tokens, dtype=torch.bool),
            torch.zeros(share.batch, config.pooled_projection_dim, **floats),
        )
        velocity = network(latents, torch.full((share.batch,), 0.5), text)
        kept = memory.now
        velocity.float().square().mean().backward()
        peak = memory.peak
    parallel.stop()
    return kept, peak


def all_counted() -> list[tuple[int, int]]:
    return [counted(number) for number in range(CASES)]


@pytest.fixture(scope="module")
def found() -> list[tuple[int, int]]:
    return from_own_process(all_counted)


@pytest.mark.parametrize("number", range(CASES))
def test_kept_and_peak_within_five_percent(found, number):
    config, _, share = case(number)
    kept = sum(sparse_ummdit_costs.kept_bytes(config, share).values())
    peak = sparse_ummdit_costs.peak_bytes(config, share)
    found_kept, found_peak = found[number]
    assert kept == pytest.approx(found_kept, rel=0.05), share
    assert peak == pytest.approx(found_peak, rel=0.05), share
