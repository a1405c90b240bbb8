"""A step that would harm the weights is left out: named, counted, and without a trace in anything else."""

import dataclasses
import math

import pytest
import torch
from rank_runs import GLOBAL_BATCH, Layout, Run
from ranks import log_lines, run_ranks

from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.errors import TrainingDiverged

BAD_STEP = 3  # counted from 0
BAD_SAMPLE = BAD_STEP * GLOBAL_BATCH + 1
WHOLE_STEP = tuple(range(BAD_STEP * GLOBAL_BATCH, (BAD_STEP + 1) * GLOBAL_BATCH))
STEPS = 6
END = BAD_STEP + 6  # of a whole run
ADAPTIVE = Layout(clip_decay=0.9)
PLAIN = Layout(clip_decay=None)


def spoilt_and_clean(layout: Layout, factors: tuple[float, ...]):
    """Train with a spoilt sample, for each factor, and without the step that it is in.

    Returns for each factor the results of both, what differs at the end, and whether the clip and the average's count agree.
    """
    clean = trained(layout, skip=WHOLE_STEP, steps=STEPS - 1)
    found = []
    for factor in factors:
        spoilt = trained(layout, spoil={BAD_SAMPLE: factor}, steps=STEPS)
        different = [name for name in clean.state if not torch.equal(spoilt.state[name], clean.state[name])]
        found.append((spoilt.results, clean.results, different, spoilt.counts == clean.counts))
    return found


@dataclasses.dataclass(frozen=True)
class Trained:
    results: list
    state: dict[str, torch.Tensor]
    counts: tuple


def trained(layout: Layout, steps: int, **data) -> Trained:
    torch.manual_seed(0)
    run = Run(layout, **data)
    results = run.steps(steps)
    state = {name: value.detach() for name, value in run.network.named_parameters()}
    state |= {f"main {index}": shard.main for index, shard in enumerate(run.engine.main_shards())}
    state |= {f"ema {name}": value for name, value in run.ema.shards.items()}
    return Trained(results, state, (run.optimizer.clip.state_dict(), run.ema.updates))


@pytest.mark.parametrize(("ranks", "layout"), [(1, ADAPTIVE), (2, ADAPTIVE)], ids=["1 rank", "2 ranks"])
def test_a_bad_sample_costs_its_step_and_nothing_else(ranks, layout):
    factors = (math.nan, math.inf, 100.0)
    for rank in run_ranks(spoilt_and_clean, ranks, layout, factors):
        for factor, (results, wanted, different, same_state) in zip(factors, rank, strict=True):
            skipped = [index for index, result in enumerate(results) if result.report.skipped]
            assert skipped == [BAD_STEP], factor
            assert f"sample{BAD_SAMPLE}" in results[BAD_STEP].suspects
            if not math.isfinite(factor):  # its loss gives it away
                assert results[BAD_STEP].suspects == (f"sample{BAD_SAMPLE}",)
            losses = [result.loss for index, result in enumerate(results) if index != BAD_STEP]
            assert losses == [result.loss for result in wanted]
            assert math.isfinite(losses[-1])
            assert different == [], factor
            assert same_state


def two_spoilt(layout: Layout) -> list[list]:
    """Results of the steps up to the bad one, and of that: of NaN, and of a large factor."""
    return [trained(layout, spoil={BAD_SAMPLE: factor}, steps=BAD_STEP + 1).results for factor in (math.nan, 100.0)]


def test_fixed_clipping_skips_only_what_is_not_finite():
    ((nan, large),) = run_ranks(two_spoilt, 1, PLAIN)
    assert [bool(result.report.skipped) for result in nan].index(True) == BAD_STEP
    assert not any(result.report.skipped for result in large)
    assert large[BAD_STEP].report.gradient_norm > 10 * large[BAD_STEP].report.threshold


def diverge(checkpoint: CheckpointConfig, bad_steps: int):
    """A whole run in which so many steps in a row are bad, from BAD_STEP on; its error, log and last iteration."""
    first = BAD_STEP * GLOBAL_BATCH
    spoil = dict.fromkeys(range(first, first + bad_steps * GLOBAL_BATCH, GLOBAL_BATCH), math.nan)
    run = Run(ADAPTIVE, checkpoint, spoil=spoil)
    with log_lines() as lines:
        try:
            run.trainer(train_iters=END).fit()
        except TrainingDiverged as error:
            return str(error), lines, run.state.iteration
    return None, lines, run.state.iteration


def test_five_in_a_row_end_the_run_and_leave_the_good_checkpoint(tmp_path):
    checkpoint = CheckpointConfig(save=str(tmp_path), save_interval=3)
    ((error, lines, iteration),) = run_ranks(diverge, 1, checkpoint, 5)
    assert error.startswith("5 steps in a row were skipped; the last saved checkpoint is from before them")
    assert iteration == BAD_STEP + 5
    assert "iteration 4: skipped, gradient norm nan; samples: sample12" in lines
    # Iteration 6 is after three skipped steps: as good as iteration 3.
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "6"
    assert sorted(item.name for item in tmp_path.glob("iter_*")) == ["iter_0000003", "iter_0000006"]


def test_four_in_a_row_do_not(tmp_path):
    ((error, lines, iteration),) = run_ranks(diverge, 1, CheckpointConfig(save=str(tmp_path)), 4)
    assert error is None
    assert iteration == END
    assert sum("skipped, gradient norm nan" in line and "samples" in line for line in lines) == 4
    assert "skipped steps: 4" in lines[-2]


def overflow(lowest: float) -> tuple[list[str], int]:
    """Seven fp16 steps on NaN; why each was skipped, and how many count."""
    run = Run(Layout(dtype="fp16", micro_batch=4), spoil=dict.fromkeys(range(100), math.nan))
    run.engine.settings = dataclasses.replace(run.engine.settings, min_loss_scale=lowest)
    return [result.report.skipped for result in run.steps(7)], run.optimizer.skipped_in_a_row


def test_an_overflow_counts_once_the_loss_scale_cannot_be_lowered():
    (((reasons, count),)) = run_ranks(overflow, 1, 1.0)
    assert (set(reasons), count) == ({"fp16 overflow, the loss scale is lowered"}, 0)
    (((reasons, count),)) = run_ranks(overflow, 1, 2.0**15)  # from 2^20, halved each time
    assert count == 2
    assert reasons[-2:] == [
        "fp16 overflow at the lowest loss scale, 32768",
        "fp16 overflow at the lowest loss scale, 16384",
    ]
