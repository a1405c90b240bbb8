"""Stop and resume equals never stopped: bit for bit at the same layout, closely at another one."""

import dataclasses
from pathlib import Path

import pytest
import torch
from rank_runs import Layout, Run
from ranks import run_ranks

from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.training.saving import Saver

STOP, STEPS = 2, 3
FORMS = ("torch", "torch_dist")
AFTER = 2  # steps at another layout; the moments are seen in the second
SPOIL = {2: 100.0}  # the first step is skipped or clipped hard


def everything(run: Run) -> dict:
    """All that a run is, as this rank holds it."""
    optimizer = run.optimizer
    return {
        "weights": {name: value.detach().clone() for name, value in run.network.named_parameters()},
        "main": [shard.main.detach().clone() for shard in run.engine.main_shards()],
        "moments": {key: [value.clone() for value in values] for key, values in run.engine.moments().items()},
        "ema": {} if run.ema is None else {name: value.clone() for name, value in run.ema.shards.items()},
        "ema updates": None if run.ema is None else run.ema.updates,
        "counters": run.engine.counters(),
        "clip": optimizer.clip.state_dict(),
        "skipped": optimizer.skipped_in_a_row,
        "position": run.stream.state_dict(),
        "random": torch.rand(3),
    }


def equal(mine, theirs) -> bool:
    if isinstance(mine, torch.Tensor):
        return mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(equal(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list):
        return len(mine) == len(theirs) and all(map(equal, mine, theirs))
    return mine == theirs


def stop_and_resume(layout: Layout, checkpoint: CheckpointConfig, ema: bool) -> tuple[list[str], list, list]:
    """What differs at the end on this rank (nothing, one hopes), and the two curves after the stop.

    The run that saves goes on to the end: `test_a_save_leaves_the_run_as_it_is` says that it is one that never saved.
    """
    options = {"ema": ema, "spoil": SPOIL}
    torch.manual_seed(7)
    first = Run(layout, checkpoint, **options)
    first.steps(STOP)
    first.saver.save()
    straight = [result.loss for result in first.steps(STEPS - STOP)]
    first.saver.complete()
    wanted = everything(first)

    torch.manual_seed(8)  # whatever the process that resumes has drawn
    second = Run(layout, checkpoint, **options, lr=1e-2)
    second.saver.resume(first.saver.store.root)
    assert second.state.iteration == STOP
    resumed = [result.loss for result in second.steps(STEPS - STOP)]
    found = everything(second)
    return [key for key in wanted if not equal(found[key], wanted[key])], resumed, straight


@pytest.mark.parametrize(
    ("ranks", "layout", "settings", "ema"),
    [
        (1, Layout(micro_batch=4, clip_decay=0.9), {}, True),
        (1, Layout(dtype="bf16", micro_batch=4, clip_decay=0.9), {"in_background": True}, False),
        (1, Layout(dtype="fp16", micro_batch=4), {}, True),
        (1, Layout(micro_batch=4, distributed_optimizer=False, dtype="bf16"), {}, True),
        (2, Layout(micro_batch=2, clip_decay=0.9), {"in_background": True}, True),
        (2, Layout(tensor=2, sequence_parallel=True, dtype="bf16", micro_batch=2), {"format": "torch_dist"}, True),
        (4, Layout(tensor=2, micro_batch=2, overlap=True, clip_decay=0.9, dropout=0.1), {}, True),
        (4, Layout(context=2, micro_batch=2, dtype="bf16"), {"format": "torch_dist", "in_background": True}, True),
    ],
    ids=str,
)
def test_resuming_is_exact(tmp_path, ranks, layout, settings, ema):
    checkpoint = CheckpointConfig(save=str(tmp_path), **settings)
    for different, resumed, straight in run_ranks(stop_and_resume, ranks, layout, checkpoint, ema):
        assert resumed == straight
        assert different == []


def saved_and_never_saved(layout: Layout, checkpoints: list[CheckpointConfig]) -> list[list[str]]:
    """What differs after the same steps between runs that saved on their way and one that did not."""
    found = []
    for settings in (CheckpointConfig(), *checkpoints):
        torch.manual_seed(7)
        run = Run(layout, settings, spoil=SPOIL)
        losses = [result.loss for result in run.steps(STOP)]
        if settings.save:
            run.saver.save()
        losses += [result.loss for result in run.steps(1)]
        run.saver.complete()
        found.append({"losses": losses, **everything(run)})
    theirs, *saved = found
    return [[key for key in mine if not equal(mine[key], theirs[key])] for mine in saved]


def test_a_save_leaves_the_run_as_it_is(tmp_path):
    layout = Layout(micro_batch=2, dtype="bf16", overlap=True, clip_decay=0.9, dropout=0.1)
    checkpoints = [
        CheckpointConfig(save=str(tmp_path / f"{form}_{in_background}"), format=form, in_background=in_background)
        for form in FORMS
        for in_background in (False, True)
    ]
    for differences in run_ranks(saved_and_never_saved, 2, layout, checkpoints):
        assert differences == [[]] * 4, checkpoints
    assert len(list(tmp_path.glob("*/iter_0000002"))) == 4


def test_the_comparison_can_fail(tmp_path):
    """Without the generators' state the run goes on with other numbers, and `everything` says so."""
    checkpoint = CheckpointConfig(save=str(tmp_path), load_rng=False)
    ((different, _, _),) = run_ranks(stop_and_resume, 1, Layout(micro_batch=4), checkpoint, True)
    assert different == ["random"]
    checkpoint = dataclasses.replace(checkpoint, load_rng=True, load_optimizer=False)
    ((different, _, _),) = run_ranks(stop_and_resume, 1, Layout(micro_batch=4), checkpoint, True)
    assert {"weights", "main", "moments", "counters", "ema"} <= set(different)


def begin(layout: Layout, root: Path) -> list[float]:
    """Train, saving on the way in each format; the losses after the saves."""
    run = Run(layout)
    run.steps(1)
    for form in FORMS:
        run.state.settings = CheckpointConfig(save=str(root / form), format=form)
        Saver(run.state).save()
    return [result.loss for result in run.steps(AFTER)]


def resume(layout: Layout, root: Path) -> list[tuple[list[float], int, int]]:
    found = []
    for form in FORMS:
        run = Run(layout, CheckpointConfig(save=str(root / form), format=form))
        assert run.saver.resume(root / form)
        found.append(([result.loss for result in run.steps(AFTER)], run.ema.updates, run.stream.seen))
    return found


@pytest.mark.parametrize(
    ("ranks", "before", "then", "after"),
    [
        (4, Layout(tensor=2, sequence_parallel=True, micro_batch=2), 1, Layout(micro_batch=4)),
        (1, Layout(micro_batch=4), 4, Layout(tensor=4, micro_batch=4)),
        (2, Layout(micro_batch=2), 4, Layout(context=2, micro_batch=2, distributed_optimizer=False)),
    ],
    ids=str,
)
def test_another_layout_follows_the_curve(tmp_path, ranks, before, then, after):
    """From a checkpoint in each format."""
    wanted = run_ranks(begin, ranks, before, tmp_path)[0]
    for of_rank in run_ranks(resume, then, after, tmp_path):
        assert len(of_rank) == len(FORMS)
        for losses, updates, seen in of_rank:
            assert losses == pytest.approx(wanted, rel=1e-4)
            assert updates == 1 + AFTER
            assert seen == (1 + AFTER) * 4  # each sample once


def resume_another_network(checkpoint: CheckpointConfig, folder) -> str:
    run = Run(Layout(micro_batch=4), checkpoint)
    run.saver.save()
    run.state.dims = {}
    with torch.no_grad():
        run.network.register_parameter("intruder", torch.nn.Parameter(torch.zeros(1)))
    try:
        run.saver.resume(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    checkpoint = CheckpointConfig(save=str(tmp_path))
    (message,) = run_ranks(resume_another_network, 1, checkpoint, tmp_path)
    assert message.startswith("CheckpointError: the checkpoint is of another network: it differs in intruder")
