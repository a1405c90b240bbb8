"""What a run begins from: the first rank chooses, all check; nodes with folders of their own are named."""

import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from rank_runs import Layout, Run
from ranks import log_lines, run_ranks

from mindspeed_mm.checkpoint import choice
from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import layout
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.training import beginning

TWO = Layout(micro_batch=2)  # on two ranks


def saved(checkpoint: CheckpointConfig, iterations: tuple[int, ...], made: Layout = TWO) -> None:
    run = Run(made, checkpoint)
    for iteration in range(1, max(iterations) + 1):
        run.steps(1)
        if iteration in iterations:
            run.saver.save()


def words(action) -> str:
    """The message of an error of ours, or the log's lines."""
    with mock.patch.object(choice, "PATIENCE_S", 0.3), log_lines() as lines:
        try:
            action()
        except CheckpointError as error:
            return f"error: {error}"
    return "\n".join(lines)


def with_own_folder(folder: Path, made: Layout, use) -> str:
    """`use`(run, folder of this rank's node): each rank is a node of its own."""
    parallel = ParallelContext.start(tensor_size=made.tensor)
    own = folder / f"node{parallel.rank}"
    return words(lambda: use(own, made))


def resume(own: Path, made: Layout) -> None:
    Run(made, CheckpointConfig(save=str(own))).saver.resume(own)


def start(own: Path, made: Layout) -> None:
    beginning.settle(CheckpointConfig(save=str(own)), ParallelContext.current())


def load(own: Path, made: Layout) -> None:
    beginning.settle(CheckpointConfig(load=str(own)), ParallelContext.current())


@pytest.fixture(scope="module")
def two_iterations(tmp_path_factory) -> Path:
    """A run of two data ranks that saved iterations 2 and 4."""
    folder = tmp_path_factory.mktemp("saved")
    run_ranks(saved, 2, CheckpointConfig(save=str(folder)), (2, 4))
    return folder


def copied(source: Path, target: Path, *iterations: int) -> Path:
    """A folder with links to some of the checkpoints, and a tracker for the last of them."""
    target.mkdir()
    for iteration in iterations:
        directory = layout.iteration_directory(target, iteration)
        directory.mkdir()
        for file in layout.iteration_directory(source, iteration).rglob("*"):
            place = directory / file.relative_to(layout.iteration_directory(source, iteration))
            place.mkdir() if file.is_dir() else os.link(file, place)
    if iterations:
        (target / layout.TRACKER).write_text(str(iterations[-1]))
    return target


def test_nodes_that_see_other_checkpoints_do_not_start(tmp_path, two_iterations):
    """Rank 0 sees iterations 2 and 4, rank 1 only 2: they used to resume at 4 and at 2, and to train on together."""
    copied(two_iterations, tmp_path / "node0", 2, 4)
    copied(two_iterations, tmp_path / "node1", 2)
    for use in (resume, load):
        first, second = run_ranks(with_own_folder, 2, tmp_path, TWO, use)
        assert "rank 1 on " in first and "sees another folder under this path: it has no iter_0000004" in first
        assert first == second


@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_folder_on_one_node_is_named_at_once(tmp_path, two_iterations, empty):
    copied(two_iterations, tmp_path / f"node{1 - empty}", 2)
    (tmp_path / f"node{empty}").mkdir()
    for found in run_ranks(with_own_folder, 2, tmp_path, TWO, load):
        assert found.startswith("error: ") and "rank 1 on " in found
        assert ("it holds a checkpoint, and none where the first rank runs" in found) == (empty == 0)


@pytest.mark.parametrize("made", [TWO, Layout(tensor=2, micro_batch=4)], ids=str)
def test_a_save_folder_of_each_node_is_refused_before_the_first_step(tmp_path, made):
    """With TP over the two nodes every save failed, and training went on to the end."""
    for found in run_ranks(with_own_folder, 2, tmp_path, made, start):
        assert found.startswith("error: ") and "what the first rank writes is not there; --save must be one" in found
    assert not list((tmp_path / "node0").iterdir())


def restarted(folder: Path, restarts: int, origin: Path) -> CheckpointConfig:
    parallel = ParallelContext.start()
    wanted = CheckpointConfig(
        save=str(folder / f"node{parallel.rank}"), load=str(origin), load_optimizer=False, load_rng=False, finetune=True
    )
    return beginning.settle(wanted, parallel, restarts)


@pytest.mark.parametrize(("restarts", "has_checkpoint"), [(0, True), (1, True), (1, False)])
def test_a_restarted_run_loads_its_own_checkpoint(tmp_path, two_iterations, restarts, has_checkpoint):
    """A run that began from --load ORIGIN, perhaps without its optimizer, does not go back there."""
    shared = copied(two_iterations, tmp_path / "node0", *((2,) if has_checkpoint else ()))
    (tmp_path / "node1").symlink_to(shared)
    for rank, found in enumerate(run_ranks(restarted, 2, tmp_path, restarts, two_iterations)):
        taken = (found.load, found.load_optimizer, found.load_rng, found.finetune)
        if restarts and has_checkpoint:
            assert taken == (str(tmp_path / f"node{rank}"), True, True, False)
        else:
            assert taken == (str(two_iterations), False, False, True)


def late(folder: Path, source: Path) -> int:
    """Rank 1 sees the newer checkpoint a second later, as through a cache of a listing."""
    parallel = ParallelContext.start()
    until = [0]

    def seen(path: Path, is_dir=Path.is_dir) -> bool:
        until[0] += path.name == "iter_0000004"
        return is_dir(path) and (parallel.is_first or path.name != "iter_0000004" or until[0] > 2)

    with mock.patch.object(Path, "is_dir", seen):
        return choice.choose(folder, parallel).iteration


def test_a_rank_whose_listing_is_old_waits_for_the_new_one(tmp_path, two_iterations):
    assert run_ranks(late, 2, two_iterations, tmp_path) == [4, 4]


def test_a_directory_is_not_believed_by_its_name(tmp_path, two_iterations):
    """iter_2 and iter_4 exchanged: iteration 2 used to be resumed as 4 without a word."""
    folder = copied(two_iterations, tmp_path / "run", 2, 4)
    two, four = (layout.iteration_directory(folder, number) for number in (2, 4))
    two.rename(folder / "kept")
    four.rename(two)
    (folder / "kept").rename(four)
    for found in run_ranks(resumed_from, 2, folder):
        assert "holds no checkpoint that can be loaded" in found
        assert "is of iteration 2, its directory's name says 4" in found


def resumed_from(folder: Path) -> str:
    return words(lambda: Run(TWO, CheckpointConfig(save=str(folder))).saver.resume(folder))


def test_a_tracker_that_names_an_older_iteration_is_followed_and_says_so(tmp_path, two_iterations):
    folder = copied(two_iterations, tmp_path / "run", 4, 2)
    first, second = run_ranks(resumed_from, 2, folder)
    assert "names iteration 2, and iter_0000004 is newer: continuing from iter_0000002; write 4 into that file" in first
    assert "resumed from" in first and "at iteration 2" in second and "newer" not in second


@pytest.mark.parametrize("content", ["5", "word"])
def test_a_tracker_that_names_nothing_is_replaced_by_the_latest_and_says_so(tmp_path, two_iterations, content):
    folder = copied(two_iterations, tmp_path / "run", 2, 4)
    (folder / layout.TRACKER).write_text(content)
    first, _ = run_ranks(resumed_from, 2, folder)
    assert "taking the latest directory, iter_0000004" in first and "at iteration 4" in first


def settled(checkpoint: CheckpointConfig) -> str:
    return words(lambda: beginning.settle(checkpoint, ParallelContext.start()))


def test_a_run_that_leaves_its_own_checkpoints_behind_says_so(tmp_path, two_iterations):
    save = copied(two_iterations, tmp_path / "run", 2)
    other = CheckpointConfig(save=str(save), load=str(two_iterations))
    assert "iter_0000002 of --save" in run_ranks(settled, 1, other)[0]
    assert "as there is no --load" in run_ranks(settled, 1, CheckpointConfig(save=str(save)))[0]
    (tmp_path / "empty").mkdir()
    assert (
        "holds no checkpoint; leave --load out"
        in run_ranks(settled, 1, CheckpointConfig(load=str(tmp_path / "empty")))[0]
    )


def test_a_file_of_weights_is_refused_with_the_key_that_takes_it(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    (found,) = run_ranks(settled, 1, CheckpointConfig(load=str(tmp_path / "model.pt")))
    assert found.startswith(f"error: --load {tmp_path}/model.pt: is a file; --load continues a run")
    assert "predictor.from_pretrained of --mm-model" in found


def test_a_save_folder_that_cannot_be_written_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    (found,) = run_ranks(settled, 1, CheckpointConfig(save=str(tmp_path / "file" / "run")))
    assert found.startswith(f"error: --save {tmp_path}/file/run: cannot be written (Not a directory)")


def continued(checkpoint: CheckpointConfig, then: Layout, ema: bool, train_iters: int) -> list:
    """Lines of a run that continues with other settings, and whether its weights are finite at the end."""
    run = Run(then, checkpoint, ema=ema)
    with log_lines() as lines:
        run.saver.resume(Path(checkpoint.save))
        run.steps(train_iters - run.state.iteration)
    return [run.state.iteration, all(value.isfinite().all() for value in run.weights().values()), lines]


@pytest.mark.parametrize(
    ("before", "after", "ema"),
    [
        (Layout(micro_batch=4), Layout(micro_batch=4, clip_decay=0.9), True),
        (Layout(micro_batch=4, clip_decay=0.9), TWO, False),
        (Layout(micro_batch=4, dtype="bf16"), Layout(micro_batch=4, dtype="fp16"), True),
        (Layout(micro_batch=4, dtype="fp16"), Layout(micro_batch=4), True),
    ],
    ids=str,
)
def test_a_run_continues_with_other_clipping_averages_and_precision(tmp_path, before, after, ema):
    run_ranks(saved, 1, CheckpointConfig(save=str(tmp_path)), (2,), before)
    for settings in ({}, {"load_optimizer": False, "load_rng": False}):
        checkpoint = CheckpointConfig(save=str(tmp_path), **settings)
        ((iteration, finite, lines),) = run_ranks(continued, 1, checkpoint, after, ema, 3)
        assert (iteration, finite) == (3, True)
        assert ("continues without the state of the optimizer" in "\n".join(lines)) == bool(settings)


def test_what_was_not_saved_is_named(tmp_path):
    checkpoint = CheckpointConfig(save=str(tmp_path), save_optimizer=False, save_rng=False)
    run_ranks(saved, 1, checkpoint, (2,), Layout(micro_batch=4))
    ((iteration, finite, lines),) = run_ranks(
        continued, 1, CheckpointConfig(save=str(tmp_path)), Layout(micro_batch=4), True, 3
    )
    assert (iteration, finite) == (3, True)
    assert "continues without the state of the optimizer (it was not saved)" in lines
    assert "continues without the state of the random numbers (it was not saved)" in lines


def ended(checkpoint: CheckpointConfig) -> list[str]:
    torch.manual_seed(0)
    run = Run(Layout(micro_batch=4), checkpoint)
    with log_lines() as lines:
        run.trainer(2).fit()
    return lines


def test_a_run_that_is_done_says_so(tmp_path):
    run_ranks(saved, 1, CheckpointConfig(save=str(tmp_path)), (2,), Layout(micro_batch=4))
    (lines,) = run_ranks(ended, 1, CheckpointConfig(load=str(tmp_path)))
    assert "iteration 2: --train-iters 2 is reached; nothing to do" in lines
