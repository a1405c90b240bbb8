"""The learning rate of iteration n is the same whatever the global batch has been, and old checkpoints find their place."""

import argparse
import itertools

import pytest
import torch
from rank_runs import GLOBAL_BATCH, Layout, Run
from ranks import log_lines, run_ranks

from mindspeed_mm.config.run import CheckpointConfig, OptimizerSettings
from mindspeed_mm.parallel.schedule import Position, Schedule, position_of

STOP, END = 10, 20
STYLES = [(style, warmup) for style in ("cosine", "linear", "inverse-square-root", "constant") for warmup in (0, 4)]


def schedule(batch: int, style: str = "cosine", warmup: int = 4, iters: int = END) -> tuple[Schedule, list]:
    """A schedule and the group whose learning rate it moves."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
    optimizer.param_groups[0].update(max_lr=1e-3, min_lr=1e-6)
    settings = OptimizerSettings(
        lr=1e-3, min_lr=1e-6, lr_decay_style=style, lr_decay_iters=iters, lr_warmup_iters=warmup
    )
    return Schedule(optimizer, settings, batch), optimizer.param_groups


def rates(one: Schedule, groups: list, count: int) -> list[float]:
    found = []
    for _ in range(count):
        found.append(groups[0]["lr"])
        one.advance()
    return found


@pytest.mark.parametrize(("style", "warmup"), STYLES)
def test_another_batch_moves_no_learning_rate(style, warmup):
    unbroken = rates(*schedule(2, style, warmup), END)
    for batch, stop in itertools.product((1, 2, 4), (2, STOP)):
        first = schedule(2, style, warmup)
        found = rates(*first, stop)
        common = {"iteration": stop, "opt_param_scheduler": first[0].state_dict()}
        second = schedule(batch, style, warmup)
        second[0].restore(position_of(common))
        assert found + rates(*second, END - stop) == unbroken


def test_a_batch_that_changes_twice_still_moves_none():
    unbroken, found, one = rates(*schedule(4), END), [], schedule(4)
    for batch in (4, 1, 8, 2):
        if found:
            state = {"iteration": len(found), "opt_param_scheduler": one[0].state_dict()}
            one = schedule(batch)
            one[0].restore(position_of(state))
        found += rates(*one, END // 4)
    assert found == unbroken


def old_checkpoint(stop: int) -> dict:
    """The common part as it was saved before updates were counted: samples, beside the optimizer's counters."""
    one = schedule(2)
    rates(*one, stop - 1)
    megatrons = {key: value for key, value in one[0].state_dict().items() if key != "samples_per_update"}
    return {
        "iteration": stop,
        "skipped_steps": 1,
        "data": {"group_size": 2},
        "optimizer": {"opt_param_scheduler": megatrons},
        "args": argparse.Namespace(global_batch_size=None),
    }


def test_old_checkpoints_of_ours_continue_at_any_batch():
    """One of the iterations was skipped, which moves no learning rate."""
    unbroken = rates(*schedule(2), END)
    without = {**old_checkpoint(STOP), "optimizer": None}
    unnamed = {**old_checkpoint(STOP), "data": {}}
    for batch, common in itertools.product((1, 2, 4), (old_checkpoint(STOP), without, unnamed)):
        one = schedule(batch)
        one[0].restore(position_of(common))
        assert rates(*one, END - STOP + 1) == unbroken[STOP - 1 :]


def test_megatrons_checkpoints_continue_by_their_samples():
    megatrons = {"num_steps": 18, "lr_decay_steps": 40, "lr_warmup_steps": 8, "max_lr": 1e-3}
    common = {"iteration": STOP, "opt_param_scheduler": megatrons, "args": argparse.Namespace(global_batch_size=2)}
    assert position_of(common) == Position(9, 2, megatrons)
    assert position_of({**common, "args": argparse.Namespace()}) == Position(STOP, None, megatrons)
    assert position_of({"iteration": STOP}) == Position(STOP)


def test_the_log_names_what_the_curve_now_follows():
    first, second = schedule(2), schedule(4, "linear", iters=40)
    rates(*first, STOP)
    with log_lines() as lines:
        second[0].restore(position_of({"iteration": STOP, "opt_param_scheduler": first[0].state_dict()}))
    assert lines == [
        "learning rate: continues after update 10; --lr-decay-style cosine -> linear, --lr-decay-iters 20 -> 40, "
        "global batch size 2 -> 4, which moves no learning rate: updates are counted"
    ]
    with log_lines() as lines:
        schedule(2)[0].restore(position_of({"iteration": STOP, "opt_param_scheduler": first[0].state_dict()}))
    assert lines == []


def curve(checkpoint: CheckpointConfig, batch: int, steps: int, resumes: bool) -> list[float]:
    """Learning rates of a run, the steps of which are the real ones; it saves at its end."""
    run = Run(
        Layout(micro_batch=2), checkpoint, batch=batch, optimizer={"lr_decay_style": "cosine", "lr_decay_iters": 8}
    )
    if resumes:
        run.saver.resume(run.saver.store.root)
    found = [result.report.learning_rate for result in run.steps(steps)]
    run.saver.save()
    return found


def test_a_resumed_run_at_another_batch(tmp_path):
    """Saved with and without the optimizer's state: the place in the schedule is the run's, not the optimizer's."""
    (unbroken,) = run_ranks(curve, 1, CheckpointConfig(save=str(tmp_path / "all")), GLOBAL_BATCH, 4, False)
    for batch, with_optimizer in ((GLOBAL_BATCH * 2, True), (GLOBAL_BATCH // 2, False)):
        checkpoint = CheckpointConfig(save=str(tmp_path / f"{batch}"), save_optimizer=with_optimizer)
        (first,) = run_ranks(curve, 1, checkpoint, GLOBAL_BATCH, 3, False)
        (second,) = run_ranks(curve, 1, checkpoint, batch, 1, True)
        assert first + second == unbroken
