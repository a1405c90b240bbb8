"""No accident while a checkpoint is written, or after, costs the one before it."""

import os
import resource
import threading
from pathlib import Path

import pytest
import torch
from ranks import log_lines, run_ranks

from mindspeed_mm import atomic
from mindspeed_mm.checkpoint import choice
from mindspeed_mm.checkpoint.store import CheckpointStore, Writing
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, layout, torch_state
from mindspeed_mm.parallel.context import ParallelContext


def write(parallel: ParallelContext, value: float, building: Path, size: int = 1000) -> integrity.Checksums:
    """This rank's file, in Megatron's place."""
    directory = layout.rank_directory(building, parallel.rank)
    directory.mkdir()
    torch_state.save({"w": torch.full((size,), value)}, directory / layout.MODEL_FILE)
    return integrity.measure(sorted(directory.iterdir()), building)


def store_with(root: Path, iterations, **settings) -> tuple[CheckpointStore, ParallelContext]:
    parallel = ParallelContext.start()
    store = CheckpointStore(root, parallel, **settings)
    for iteration in iterations:
        store.save(iteration, lambda building, i=iteration: Writing(lambda: write(parallel, float(i), building)))
    return store, parallel


def save(root: Path, iterations, settings) -> None:
    store_with(root, iterations, **settings)[0].complete()


def latest(root: Path) -> tuple[str, float] | str:
    """Name and value of what a run would continue from, or the error."""
    return latest_with_log(root)[0]


def latest_with_log(root: Path) -> tuple[tuple[str, float] | str, list[str]]:
    parallel = ParallelContext.start()
    with log_lines() as lines:
        try:
            found = choice.choose(root, parallel).directory
        except CheckpointError as error:
            return str(error), lines
    return (
        found.name,
        torch_state.load(layout.rank_directory(found, parallel.rank) / layout.MODEL_FILE)["w"][0].item(),
    ), lines


@pytest.mark.parametrize("in_background", [False, True])
def test_the_latest_is_found(tmp_path, in_background):
    run_ranks(save, 2, tmp_path, [10, 20], {"in_background": in_background})
    assert run_ranks(latest, 2, tmp_path) == [("iter_0000020", 20.0)] * 2
    assert (tmp_path / layout.TRACKER).read_text() == "20"
    assert not list(tmp_path.glob("*.tmp"))


def test_old_ones_are_deleted_but_for_the_kept(tmp_path):
    run_ranks(save, 1, tmp_path, [10, 20, 30, 40, 50, 60], {"keep_last": 2, "keep_every": 20})
    assert [f"iter_00000{n}" for n in (20, 40, 50, 60)] == sorted(item.name for item in tmp_path.glob("iter_*"))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def record_of(text: str):
    def replaced(file: Path) -> None:
        (file.parents[1] / integrity.CHECKSUMS).write_text(text)

    return replaced


def empty_record(file: Path) -> None:
    (file.parents[1] / integrity.CHECKSUMS).write_text('{"mp_rank')


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "truncated, "),
        (flip_a_bit, "damaged, its checksum is not the one that was recorded"),
        (Path.unlink, "missing"),
        (empty_record, "is damaged"),
        (record_of("[1, 2]"), "is damaged; it must hold the size and checksum of each file"),
        (
            record_of('{"mp_rank_00/model_optim_rng.pt": "5"}'),
            "is damaged; it must hold the size and checksum of each file",
        ),
    ],
)
def test_a_damaged_one_is_passed_over_and_the_one_before_it_loads(tmp_path, harm, reason):
    run_ranks(save, 2, tmp_path, [10, 20], {})
    harm(tmp_path / "iter_0000020" / "mp_rank_01" / layout.MODEL_FILE)
    (first, (line,)), (second, silence) = run_ranks(latest_with_log, 2, tmp_path)
    assert first == second == ("iter_0000010", 10.0)
    assert line.startswith("passed over iter_0000020: ") and reason in line
    assert silence == []


def test_none_left_is_an_error_that_says_why(tmp_path):
    run_ranks(save, 1, tmp_path, [10], {})
    truncate(tmp_path / "iter_0000010" / "mp_rank_00" / layout.MODEL_FILE)
    (message,) = run_ranks(latest, 1, tmp_path)
    assert "holds no checkpoint that can be loaded" in message and "truncated" in message


def test_what_a_killed_writer_left_is_no_checkpoint_and_in_no_ones_way(tmp_path):
    run_ranks(save, 1, tmp_path, [10], {})
    left = tmp_path / "iter_0000020.tmp" / "mp_rank_00"
    left.mkdir(parents=True)
    (left / layout.MODEL_FILE).write_bytes(b"half")
    assert run_ranks(latest, 1, tmp_path) == [("iter_0000010", 10.0)]
    run_ranks(save, 1, tmp_path, [20], {})
    assert run_ranks(latest, 1, tmp_path) == [("iter_0000020", 20.0)]
    assert not left.exists()


def test_killed_between_rename_and_tracker(tmp_path):
    """The tracker is last: what it names is loaded, although a later directory is there."""
    run_ranks(save, 1, tmp_path, [10, 20], {})
    (tmp_path / layout.TRACKER).write_text("10")
    assert run_ranks(latest, 1, tmp_path) == [("iter_0000010", 10.0)]


@pytest.mark.parametrize("word", [b"\xff\xfe", b"many", b"", "\u00b2".encode(), b"9" * 5000, b"30"])
def test_a_tracker_that_names_nothing_is_passed_over(tmp_path, word):
    run_ranks(save, 1, tmp_path, [10, 20], {})
    (tmp_path / layout.TRACKER).write_bytes(word)
    assert run_ranks(latest, 1, tmp_path) == [("iter_0000020", 20.0)]


def killed_while_it_replaces(root: Path) -> None:
    """Another checkpoint of iteration 20 takes the first one's place; the process dies between two renames."""
    store, _ = store_with(root, [10, 20])
    rename = atomic.rename

    def killed(source, target):
        if source.suffix == ".tmp":
            raise KeyboardInterrupt
        rename(source, target)

    atomic.rename = killed
    try:
        store.save(20, lambda building: Writing(lambda: write(store.parallel, 21.0, building)))
    except KeyboardInterrupt:
        return
    finally:
        atomic.rename = rename


def test_a_checkpoint_that_is_replaced_is_there_until_the_new_one_is(tmp_path):
    run_ranks(killed_while_it_replaces, 1, tmp_path)
    assert run_ranks(latest, 1, tmp_path) == [("iter_0000020", 20.0)]
    run_ranks(save, 1, tmp_path, [20], {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000010", "iter_0000020", layout.TRACKER]


def out_of_memory(root: Path) -> str:
    """One of two ranks has no memory for a copy of its weights; both go on with the training."""
    store, parallel = store_with(root, [10])

    def collect():
        if parallel.rank == 1:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9e9 bytes"
            )
        return "the run"

    try:
        store.collected(20, collect)
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_no_memory_to_collect_a_checkpoint_is_an_error_on_every_rank(tmp_path):
    for message in run_ranks(out_of_memory, 2, tmp_path):
        assert "the checkpoint of iteration 20 is not saved (rank 1: no memory to collect it" in message


def save_on_a_full_disk(root: Path, in_background: bool) -> str:
    """One rank may not write more than 2 MB, the others may."""
    store, parallel = store_with(root, [10], in_background=in_background)
    store.complete()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if parallel.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, limits[1]))
    try:
        store.save(20, lambda building: Writing(lambda: write(parallel, 20.0, building, size=1 << 20)))
        store.complete()
    except CheckpointError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return "no error"


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_is_an_error_on_every_rank_and_costs_nothing(tmp_path, in_background):
    for message in run_ranks(save_on_a_full_disk, 2, tmp_path, in_background):
        assert "the checkpoint of iteration 20 is not saved (rank 1: " in message
        assert "earlier ones are as they were" in message
    assert not list(tmp_path.glob("*.tmp"))
    assert run_ranks(latest, 2, tmp_path) == [("iter_0000010", 10.0)] * 2


def save_slowly(root: Path) -> list:
    """What `poll` says before and after the writer may go on, and whether the caller was held up."""
    parallel = ParallelContext.start()
    store = CheckpointStore(root, parallel, in_background=True)
    go_on = threading.Event()

    def slow(building: Path) -> integrity.Checksums:
        assert go_on.wait(60)
        return write(parallel, 10.0, building)

    store.save(10, lambda building: Writing(lambda: slow(building)))
    seen = [store.poll(), layout.has_checkpoint(root)]
    go_on.set()
    return [*seen, store.complete(), layout.has_checkpoint(root)]


def test_the_background_does_not_hold_up_the_caller(tmp_path):
    assert run_ranks(save_slowly, 2, tmp_path) == [[None, False, 10, True]] * 2
