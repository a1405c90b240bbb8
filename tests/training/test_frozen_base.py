"""Adapters beside a base in fewer bits, or on the host: the same curve at every layout, bit by bit where nothing rounds."""

import pytest
from rank_runs import Layout, Run, curve
from ranks import run_ranks
from test_resume import stop_and_resume

from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.families.adapters import AdapterConfig

STEPS = 3
TARGETS = ("attention", "feed_forward", "modulation", "text", "skip", "output")
BLOCKS = 4


def layout(base: str | None, stream: int | None = None, kind: str = "dora", **options) -> Layout:
    adapter = AdapterConfig(kind=kind, rank=3, alpha=6, targets=TARGETS, base_weights=base, stream_blocks=stream)
    return Layout(adapter=adapter, **options)


def on_one_rank(base: str | None):
    return run_ranks(curve, 1, layout(base), STEPS)[0]


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_every_layout_gives_the_curve_of_one_rank(base):
    wanted, plain = on_one_rank(base), on_one_rank(None)
    apart = {"int8": 1e-2, "nf4": 1e-1}[base]
    assert wanted != plain and wanted[0][0] == pytest.approx(plain[0][0], rel=apart)
    layouts = [
        (2, {"tensor": 2}),
        (2, {"tensor": 2, "sequence_parallel": True, "micro_batch": 2, "stream": 2}),
        (1, {"recompute_blocks": BLOCKS, "distributed_optimizer": False}),
    ]
    for ranks, options in layouts:
        for found in run_ranks(curve, ranks, layout(base, **options), STEPS):
            assert [pytest.approx(pair, rel=1e-5) for pair in found] == wanted, options


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (1, {"base": "nf4"}),
        (1, {"base": None, "recompute_feed_forwards": 2}),
        (1, {"base": None, "kind": "lora", "dtype": "bf16", "recompute_blocks": BLOCKS}),
        (2, {"base": None, "tensor": 2, "sequence_parallel": True, "micro_batch": 2}),
    ],
    ids=str,
)
def test_streamed_blocks_change_no_bit(ranks, options):
    for resident in (1, 2):
        streamed, whole = layout(**options, stream=resident), layout(**options)
        assert run_ranks(curve, ranks, streamed, STEPS) == run_ranks(curve, ranks, whole, STEPS)


def moved(layout: Layout) -> tuple[list[int], list[int]]:
    """Bytes of each block on the host, and bytes that each of three steps moved."""
    run = Run(layout)
    found = []
    for _ in range(3):
        before = run.blocks.moved_bytes
        run.steps(1)
        found.append(run.blocks.moved_bytes - before)
    return [sum(piece.numel() for piece in home) for home in run.blocks._homes], found


@pytest.mark.parametrize("resident", [1, 2, 3])
def test_a_step_moves_each_block_twice_but_those_that_stay(resident):
    ((sizes, found),) = run_ranks(moved, 1, layout("int8", resident, micro_batch=2))
    assert len(sizes) == BLOCKS and sizes[0] > sizes[-1] > 0  # the last one has no text output
    once = sum(sizes[resident:]) + sum(sizes[: BLOCKS - resident])
    assert found[1:] == [2 * once] * 2  # two micro-batches


def test_resuming_is_exact(tmp_path):
    run = layout("nf4", 2, kind="lora", dtype="bf16", tensor=2, sequence_parallel=True, micro_batch=2)
    for different, resumed, straight in run_ranks(stop_and_resume, 2, run, CheckpointConfig(save=str(tmp_path)), True):
        assert not different
        assert resumed == straight
