"""One rank's work by formulas equals what a real pass computes, moves and exchanges, for layouts that nobody chose by hand.

The ranks are torch's fake group: a process issues the collectives of its rank, and nobody answers.
"""

import collections
import random
import sys
from pathlib import Path
from unittest import mock

import pytest
import random_cases
import torch
from ranks import from_own_process

from mindspeed_mm.families import sparse_ummdit
from mindspeed_mm.families.base import Share
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
CASES = 10


def case(number: int) -> tuple[SparseUMMDiTConfig, tuple[int, int, int], Share, int]:
    """A random network, grid of video tokens, share and number of data ranks; the number is the seed."""
    draw = random.Random(1000 + number)
    sparsity = draw.choice([2, 4])
    layout = draw.choice([(1, 1), (1, 2), (2, 1), (2, 2), (4, 2), (8, 1), (1, 4)])
    recompute = random_cases.recomputation(draw)
    stages = draw.choice([(2, 2, 2), (2, 2, 2), (2, 2, 2, 2, 2)])
    config = random_cases.network(draw, stages, sparsity, skips=0.5, heads=8, head_dim=16)
    blocks, grid = sum(stages), draw.choice([(2, 8, 8), (3, 8, 8), (2, 4, 16)])
    share = random_cases.share(draw, blocks, grid, layout, recompute, [32, 64])
    return config, grid, share, draw.choice([1, 2, 64])


def counted(number: int) -> tuple[int, dict, int, int]:
    """Operations, collectives, moved bytes and partial numbers of a real forward and backward pass on rank 0."""
    import torch.distributed as dist
    from collectives import CollectiveCounter
    from moved_bytes import MovedBytes
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.utils.flop_counter import FlopCounterMode

    from mindspeed_mm import types
    from mindspeed_mm.models.build import build_denoiser
    from mindspeed_mm.parallel.context import ParallelContext
    from mindspeed_mm.types import TORCH_DTYPES, TextFeatures

    config, (t, h, w), share, data = case(number)
    ranks = share.tensor * share.context * data
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    parallel = ParallelContext.start("fake", share.tensor, share.context, share.sequence_parallel)
    dtype = {2: "bf16", 4: "fp32"}[share.itemsize]
    recompute = {
        "recompute_blocks": share.recompute_blocks,
        "recompute_feed_forwards": share.recompute_feed_forwards,
    }
    network = build_denoiser(config, parallel, dtype=dtype, seed=0, **recompute).train()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    floats = {"dtype": TORCH_DTYPES[dtype]}
    latents = torch.zeros(share.batch, config.in_channels, t, 2 * h, 2 * w, **floats)
    text = TextFeatures(
        torch.zeros(share.batch, share.text_tokens, config.caption_channels, **floats),
        torch.ones(share.batch, share.text_tokens, dtype=torch.bool),
        torch.zeros(share.batch, config.pooled_projection_dim, **floats),
    )

    def passes() -> None:
        network(latents, torch.full((share.batch,), 0.5), text).float().square().mean().backward()

    groups = {"tensor": parallel.tensor, "context": parallel.context}
    # as in a large network, where no result is so small that it is kept
    with mock.patch.object(types, "LEAST_RECOMPUTED_BYTES", 0):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops, CollectiveCounter(groups) as seen:
            passes()
        with MovedBytes() as moved:
            passes()
    partial = sum(parameter.numel() for parameter in network.partial_gradients()) if share.tensor > 1 else 0
    parallel.stop()
    exchanged = {(one.kind, one.group, one.bytes): count for one, count in seen.seen.items()}
    return flops.get_total_flops(), exchanged, moved.total, partial


def all_counted() -> list:
    return [counted(number) for number in range(CASES)]


@pytest.fixture(scope="module")
def found() -> list:
    return from_own_process(all_counted)


@pytest.mark.parametrize("number", range(CASES))
def test_operations_collectives_and_bytes_are_those_of_a_real_pass(found, number):
    config, _, share, _ = case(number)
    work = sparse_ummdit.FAMILY.training_work(config, share, sparse_ummdit.parameters(config))
    flops, exchanged, moved, partial = found[number]
    assert work.products + sum(work.attention.values()) + work.again == pytest.approx(flops, rel=2e-3), share
    planned = collections.Counter()
    for one in work.collectives:
        planned[one.kind, one.group, one.bytes] += one.count
    assert dict(planned) == exchanged, share
    assert work.partial_numbers == partial
    # tensors of a sample, which the formula leaves out, count in networks as small as these
    assert work.moved_bytes == pytest.approx(moved, rel=0.2), share
