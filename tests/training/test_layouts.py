"""Every layout of the same run gives the same curve."""

import dataclasses

import pytest
from rank_runs import FOUR_BLOCKS, Layout, curve
from ranks import run_ranks

STEPS = 12  # of one rank
TOLERANCE = 1e-4  # relative, of losses and gradient norms, fp32


@pytest.fixture(scope="module")
def one_rank():
    return run_ranks(curve, 1, Layout(micro_batch=2), STEPS, FOUR_BLOCKS)[0]


def check(found, wanted):
    assert len(found) > 0
    for step, (mine, theirs) in enumerate(zip(found, wanted, strict=False)):
        assert mine == pytest.approx(theirs, rel=TOLERANCE), step


@pytest.mark.parametrize(
    ("layout", "steps"),
    [
        (Layout(tensor=2, sequence_parallel=True, micro_batch=2), 4),  # x DP 2
        (Layout(context=2, micro_batch=2), 4),  # x DP 2
        (Layout(tensor=2, context=2, sequence_parallel=True, micro_batch=4), 4),
        (Layout(), 4),  # DP 4
        (Layout(overlap=True), 3),
        (Layout(tensor=2, context=2, micro_batch=4, overlap=True), 3),
        (Layout(tensor=2, micro_batch=1), 3),  # two micro-batches of each data rank
        (Layout(distributed_optimizer=False), 3),
        (Layout(distributed_optimizer=False, overlap=True), 3),
        (Layout(overlap=True, share_memory=True), 3),
        (Layout(tensor=2, sequence_parallel=True, micro_batch=2, share_memory=True), 3),
        (Layout(distributed_optimizer=False, share_memory=True), 3),
    ],
    ids=str,
)
def test_four_ranks_give_the_curve_of_one(one_rank, layout, steps):
    for found in run_ranks(curve, 4, layout, steps, FOUR_BLOCKS):
        assert len(found) == steps
        check(found, one_rank)


IMAGES = dataclasses.replace(FOUR_BLOCKS, image_mask_channels=2)


def test_image_conditions_give_one_curve_at_every_layout(one_rank):
    wanted = run_ranks(curve, 1, Layout(micro_batch=2), 4, IMAGES)[0]
    for found in run_ranks(curve, 4, Layout(tensor=2, context=2, sequence_parallel=True, micro_batch=4), 4, IMAGES):
        check(found, wanted)
    losses, plain = ([loss for loss, _ in run] for run in (wanted, one_rank))
    assert losses[0] == plain[0] and losses[3] != plain[3]  # the inputs begin at zero and then learn


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(micro_batch=4), Layout(micro_batch=2, distributed_optimizer=False)]
)
def test_micro_batches_and_the_plain_optimizer_give_it_too(one_rank, layout):
    check(run_ranks(curve, 1, layout, 3, FOUR_BLOCKS)[0], one_rank)


@pytest.mark.parametrize(
    "layout", [Layout(micro_batch=2, recompute_blocks=3), Layout(micro_batch=2, recompute_feed_forwards=4)]
)
def test_recomputation_gives_it_bit_for_bit(one_rank, layout):
    assert run_ranks(curve, 1, layout, 3, FOUR_BLOCKS)[0] == one_rank[:3]


def test_the_loss_falls(one_rank):
    losses = [loss for loss, _ in one_rank]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_bf16_weights_with_fp32_main_weights_follow_the_curve(one_rank):
    found = run_ranks(curve, 1, Layout(dtype="bf16", micro_batch=4), STEPS, FOUR_BLOCKS)[0]
    for (mine, _), (theirs, _) in zip(found, one_rank, strict=True):
        assert mine == pytest.approx(theirs, rel=5e-2)


def test_fp16_finds_its_loss_scale_and_follows_the_curve(one_rank):
    found = run_ranks(curve, 1, Layout(dtype="fp16", micro_batch=4), 8, FOUR_BLOCKS)[0]
    overflowed = [norm == float("inf") for _, norm in found]
    assert overflowed[0] and not overflowed[-1]  # the scale starts too high, and a skipped step changes no weight
    start = overflowed.index(False)
    for (mine, _), (theirs, _) in zip(found[start:], one_rank[start:], strict=False):
        assert mine == pytest.approx(theirs, rel=2e-1)


DROPOUT = Layout(dropout=0.6, micro_batch=2)
DROPOUT_STEPS = 3
DROPOUT_TOLERANCE = 1e-5  # relative; another mask changes the last loss by more than 1e-3


@pytest.fixture(scope="module", params=[True, False], ids=["two feed-forwards", "one feed-forward"])
def with_dropout(request):
    """A network, and its curve on one rank."""
    denoiser = dataclasses.replace(FOUR_BLOCKS, double_ff=request.param)
    return denoiser, run_ranks(curve, 1, DROPOUT, DROPOUT_STEPS, denoiser)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"tensor": 2, "micro_batch": 2},  # x DP 2
        {"tensor": 2, "context": 2, "sequence_parallel": True, "micro_batch": 4},
    ],
    ids=str,
)
def test_dropout_drops_the_same_at_every_layout(with_dropout, changes):
    denoiser, wanted = with_dropout
    for found in run_ranks(curve, 4, dataclasses.replace(DROPOUT, **changes), DROPOUT_STEPS, denoiser):
        assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in wanted], rel=DROPOUT_TOLERANCE)


def test_dropout_drops_the_same_in_recomputation_and_something_at_all(with_dropout):
    denoiser, wanted = with_dropout
    assert run_ranks(curve, 1, dataclasses.replace(DROPOUT, recompute_blocks=4), DROPOUT_STEPS, denoiser)[0] == wanted
    whole = run_ranks(curve, 1, Layout(micro_batch=2), DROPOUT_STEPS, denoiser)[0]
    assert whole[-1][0] != pytest.approx(wanted[-1][0], rel=100 * DROPOUT_TOLERANCE)
