"""Adapters beside a base in fewer bits, or on the host: the same curve at every layout, bit by bit where nothing rounds."""

import functools

import pytest
from rank_runs import FOUR_BLOCKS, Layout, Run, curve
from ranks import run_ranks
from test_resume import stop_and_resume

from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.families.adapters import AdapterConfig

STEPS = 2
BLOCKS = 3


def layout(base: str | None, stream: int | None = None, kind: str = "dora", **options) -> Layout:
    targets = ("attention", "feed_forward", "modulation", "text", "skip", "output")
    adapter = AdapterConfig(kind=kind, rank=3, alpha=6, targets=targets, base_weights=base, stream_blocks=stream)
    return Layout(adapter=adapter, **options)


@functools.cache
def on_one_rank(base: str | None) -> list[tuple[float, float]]:
    return run_ranks(curve, 1, layout(base, micro_batch=2), STEPS)[0]


@pytest.mark.parametrize(
    ("base", "apart", "options"),
    [
        ("int8", 1e-2, {"tensor": 2, "micro_batch": 4}),
        ("nf4", 1e-1, {"tensor": 2, "sequence_parallel": True, "micro_batch": 2, "stream": 2}),
    ],
)
def test_two_ranks_give_the_curve_of_one(base, apart, options):
    wanted, plain = on_one_rank(base), on_one_rank(None)
    assert wanted[0] != plain[0] and wanted[0][0] == pytest.approx(plain[0][0], rel=apart)
    for found in run_ranks(curve, 2, layout(base, **options), STEPS):
        assert [pytest.approx(pair, rel=1e-5) for pair in found] == wanted


def test_streamed_packed_blocks_change_no_bit():
    assert run_ranks(curve, 1, layout("nf4", 1, micro_batch=2), STEPS)[0] == on_one_rank("nf4")


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (1, {"kind": "lora", "dtype": "bf16", "micro_batch": 2, "recompute_blocks": BLOCKS}),
        (2, {"tensor": 2, "sequence_parallel": True, "micro_batch": 2, "recompute_feed_forwards": 2}),
        (2, {"tensor": 2, "sequence_parallel": True, "micro_batch": 2, "fp8_format": "hybrid"}),
    ],
    ids=str,
)
def test_streamed_blocks_change_no_bit(ranks, options):
    streamed, whole = layout(None, 2, **options), layout(None, **options)
    assert run_ranks(curve, ranks, streamed, STEPS) == run_ranks(curve, ranks, whole, STEPS)


def moved(layout: Layout) -> tuple[list[int], list[int]]:
    """Bytes of each block on the host, and bytes that each of two steps moved."""
    run, found = Run(layout, denoiser=FOUR_BLOCKS), []
    for _ in range(2):
        before = run.blocks.moved_bytes
        run.steps(1)
        found.append(run.blocks.moved_bytes - before)
    return [sum(piece.numel() for piece in home) for home in run.blocks._homes], found


def test_a_micro_batch_moves_each_block_twice_but_those_that_stay():
    ((sizes, found),) = run_ranks(moved, 1, layout("int8", 3, micro_batch=2))
    assert len(sizes) == 4 and sizes[0] > sizes[-1] > 0  # the last one has no text output
    each = 2 * (sizes[3] + sizes[0])  # two micro-batches, forward and backward pass
    assert found == [sizes[0] + each, each]  # before the first step the last blocks are there


def test_resuming_is_exact(tmp_path):
    run = layout("nf4", 2, kind="lora", dtype="bf16", micro_batch=4)
    for different, resumed, straight in run_ranks(stop_and_resume, 1, run, CheckpointConfig(save=str(tmp_path)), True):
        assert not different
        assert resumed == straight
