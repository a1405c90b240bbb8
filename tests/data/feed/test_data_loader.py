"""The loader: worker processes, resume, ranks, bad files."""

import functools
import json
import logging
import os
import random
import re
import signal
import threading
import time

import pytest
import torch
from data_helpers import LetterTokenizer, data_config, row, write_clip, write_list

from mindspeed_mm.data.feed.build import build_loader, joiner
from mindspeed_mm.data.feed.collate import collate
from mindspeed_mm.data.feed.dataset import ClipDataset, Tokens, build_dataset
from mindspeed_mm.data.feed.ledger import Ledger, Substitution
from mindspeed_mm.data.feed.loader import ALONE, Loader, Sharing
from mindspeed_mm.data.feed.making import Making
from mindspeed_mm.data.feed.sampler import GroupedSampler, Order, Position, Split
from mindspeed_mm.data.feed.video import VideoSource
from mindspeed_mm.data.lists.filters import filter_rows
from mindspeed_mm.data.lists.sources import read_list
from mindspeed_mm.data.workers import pool
from mindspeed_mm.data.workers.threads import in_a_thread
from mindspeed_mm.errors import DataError

STRIDES = (8, 8, 8)


def loader_of(
    data_path,
    *,
    group_size=2,
    micro=1,
    rank=0,
    world_size=1,
    seed=5,
    preprocess=None,
    shuffle=True,
    drop_rare=False,
    num_workers=0,
    start_method=None,
    sharing=ALONE,
    ledger=None,
):
    config = data_config(data_path, preprocess).dataset_param
    clips = filter_rows(read_list(data_path), config.preprocess_parameters, None).clips
    videos, texts = VideoSource(config.preprocess_parameters), Tokens(LetterTokenizer(), None)
    dataset = ClipDataset(clips, config, videos, texts, seed=seed)
    split = Split(group_size, micro, rank, world_size)
    sampler = GroupedSampler(dataset.keys, split, Order(seed, shuffle=shuffle, drop_rare=drop_rare))
    join = functools.partial(collate, strides=STRIDES, patch_size=2)
    making = Making(num_workers, config.preprocess_parameters.timeout, start_method=start_method)
    return Loader(dataset, sampler, join, making, ledger=ledger, sharing=sharing)


def take(loader, count):
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        assert left.paths == right.paths
        assert torch.equal(left.video, right.video) and torch.equal(left.text.ids, right.text.ids)
        assert torch.equal(left.keep, right.keep) and torch.equal(left.text.keep, right.text.keep)


@pytest.fixture(scope="module")
def reference(clip_folder):
    """Eight batches of two, of more than one epoch, without worker processes."""
    return take(loader_of(clip_folder / "data.txt", micro=2), 8)


def test_batches_hold_different_clips_of_one_shape(reference):
    for batch in reference:
        assert batch.video.shape == (2, 3, 9, 32, 64) and batch.video.dtype == torch.float32
        assert batch.keep.shape == (2, 2, 4, 8) and batch.keep.all()
        assert batch.text.ids.shape == (2, 16) and batch.pooled_text is None
        assert len(set(batch.paths)) == 2
        assert not torch.equal(batch.video[0], batch.video[1])
    assert len({path for batch in reference[:6] for path in batch.paths}) == 12  # an epoch: every clip once


@pytest.mark.parametrize(("workers", "start_method"), [(1, "fork"), (2, "fork"), (1, "forkserver")])
def test_worker_processes_change_nothing(clip_folder, reference, workers, start_method):
    loader = loader_of(clip_folder / "data.txt", micro=2, num_workers=workers, start_method=start_method)
    assert_same(take(loader, 8), reference)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_continues_with_the_next_batch_whatever_was_prefetched(clip_folder, reference, workers):
    first = loader_of(clip_folder / "data.txt", micro=2, num_workers=workers)
    assert_same(take(first, 3), reference[:3])
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["epoch"], state["consumed"]) == (0, 6)
    second = loader_of(clip_folder / "data.txt", micro=2, num_workers=workers)
    second.load_state_dict(state)
    assert_same(take(second, 5), reference[3:])
    assert second.epoch == 1 and second.state_dict()["consumed"] == 4
    assert_same(take(first, 5), reference[3:])  # and the first one can go on too


def test_two_ranks_share_the_samples_of_one(clip_folder, reference):
    parts = [take(loader_of(clip_folder / "data.txt", world_size=2, rank=rank), 6) for rank in range(2)]
    for whole, *halves in zip(reference, *parts, strict=False):
        assert whole.paths == tuple(path for half in halves for path in half.paths)
        assert torch.equal(whole.video, torch.cat([half.video for half in halves]))
    states = [loader_of(clip_folder / "data.txt", world_size=2, rank=rank) for rank in range(2)]
    assert states[0].state_dict() == states[1].state_dict()


def test_iterating_leaves_the_global_generators_alone(clip_folder):
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    take(loader_of(clip_folder / "data.txt", num_workers=1), 2)
    take(loader_of(clip_folder / "data.txt"), 2)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_logged_once_and_counted(tmp_path, caplog, workers):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_clip(tmp_path / name, 12)
    (tmp_path / "bad.mp4").write_bytes(b"")
    data = write_list(tmp_path, [row(name, num_frames=12) for name in ("a.mp4", "b.mp4", "bad.mp4", "c.mp4")])
    loader = loader_of(data, num_workers=workers)
    with caplog.at_level(logging.WARNING, logger="mindspeed_mm"):
        batches = take(loader, 12)  # three epochs
    assert all(batch.paths[0] != f"{tmp_path}/bad.mp4" for batch in batches)
    assert set(loader.bad_samples) == {f"{tmp_path}/bad.mp4"}
    assert loader.bad_samples[f"{tmp_path}/bad.mp4"].count == 3
    lines = [record.getMessage() for record in caplog.records if "bad sample" in record.getMessage()]
    assert len(lines) == 1 and f"{tmp_path}/bad.mp4: cannot be decoded" in lines[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_still_one_line(tmp_path, workers):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    data = write_list(tmp_path, [row("a.mp4"), row("b.mp4")])
    with pytest.raises(DataError) as caught:
        take(loader_of(data, num_workers=workers), 1)
    assert re.match(r"2 files of shape 9x32x64 in a row cannot be used; the last reason: ", str(caught.value))
    assert "\n" not in str(caught.value)


def test_another_seed_list_or_order_starts_the_next_epoch_and_is_named(clip_folder, caplog):
    loader = loader_of(clip_folder / "data.txt")
    take(loader, 3)
    state = loader.state_dict()
    old = {key: state[key] for key in ("epoch", "consumed", "earlier", "group_size", "fingerprint", "ledger")}
    shorter = write_list(clip_folder, [row(f"clip{i}.mp4") for i in range(10)], "shorter")
    unlike = {
        "--seed 5 -> 6": ({"seed": 6}, state),
        "another list of clips (12 -> 10 that can be used)": ({"data_path": shorter}, state),
        "shuffle true -> false": ({"shuffle": False}, state),
        "other shapes of the clips": ({"preprocess": {"max_height": 64}}, state),
        "another list of clips, other shapes or another seed": ({"seed": 6}, old),
    }
    for words, (options, saved) in unlike.items():
        other = loader_of(**{"data_path": clip_folder / "data.txt", **options})
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="mindspeed_mm"):
            other.load_state_dict(saved)
        assert (other.epoch, other.state_dict()["consumed"]) == (1, 0)
        assert f"the place in epoch 0 is lost, as the checkpoint was written with other data: {words}" in caplog.text
    loader.load_state_dict(old)
    assert (loader.epoch, loader.state_dict()["consumed"]) == (0, 3)


def indices(sampler: GroupedSampler, loader: Loader, count: int | None) -> list[int]:
    """Clips that the next `count` samples are, or all that are left of the epoch."""
    position = sampler.position(loader.state_dict())
    left = sampler.left(position)
    steps = sampler.steps(position)
    return [
        index for _ in range((left if count is None else count) // sampler.step_size) for index in next(steps).indices
    ]


@pytest.mark.parametrize(("first", "second", "words"), [
    (2, 4, "shapes now too rare: 17x32x64=9"),
    (4, 2, "shapes used again: 17x32x64=9"),
])  # fmt: skip
def test_another_global_batch_keeps_the_place_of_every_shape_and_sees_each_clip_once(
    tmp_path, caplog, first, second, words
):
    """A shape of 9 clips is too rare for a batch of 4: a quarter of the epoch before, the rest after the change."""
    rows = [row(f"{i}.mp4") for i in range(20)] + [row(f"long{i}.mp4", num_frames=17) for i in range(9)]
    data = write_list(tmp_path, rows[::2] + rows[1::2])
    config = {"num_frames": 17, "drop_short_ratio": 0.0}
    before, after = (loader_of(data, group_size=size, preprocess=config, drop_rare=True) for size in (first, second))
    assert len(before.dataset.keys) == len(after.dataset.keys) == 29
    seen = indices(before._sampler, before, 8)
    state = before._sampler.state(Position(0, 8))
    with caplog.at_level(logging.INFO, logger="mindspeed_mm"):
        after.load_state_dict({**before.state_dict(), **state})
    assert f"global batch size {first} -> {second}: epoch 0 goes on with " in caplog.text and words in caplog.text
    rest = indices(after._sampler, after, None)
    assert len({*seen, *rest}) == len(seen) + len(rest)
    short = [index for index, key in enumerate(after.dataset.keys) if key == "9x32x64"]
    long = [index for index, key in enumerate(after.dataset.keys) if key == "17x32x64"]
    if second == 4:  # what is left of the short ones, in whole groups; none of the long ones
        assert set(long).isdisjoint(rest) and len(rest) == (20 - len(set(short) & set(seen))) // 4 * 4
    else:
        assert set(short) <= {*seen, *rest} and len(set(long) & set(rest)) == 8


# ---------------------------------------------------------------------------------------------------------- from a config


def built(config, size=2, micro=1, evaluation=False):
    """The loader of a config's list; `evaluation`: as for a held-out list."""
    config = config.held_out(None) if evaluation else config
    dataset = build_dataset(config.dataset_param, global_batch_size=None if evaluation else size, seed=0)
    join = joiner(config, micro, STRIDES, 2)
    return build_loader(dataset, config, Split(size, micro), join, seed=0, evaluation=evaluation)


@pytest.fixture
def config(clip_folder, encoder_folder):
    return data_config(
        clip_folder / "data.txt",
        {"cfg": 0.5},
        {"num_workers": 1, "pin_memory": True},
        model_max_length=24,
        tokenizer_config={"from_pretrained": str(encoder_folder / "t5")},
        tokenizer_config_2={"from_pretrained": str(encoder_folder / "clip")},
    )


def test_a_loader_from_a_config_reports_and_gives_batches(config, caplog):
    with caplog.at_level(logging.INFO, logger="mindspeed_mm"):
        loader = built(config)
    lines = [record.getMessage() for record in caplog.records]
    assert "data: 12 of 12 rows are used" in lines
    assert "data: clips by shape 9x32x64=12" in lines
    assert "data: an epoch has 12 samples in groups of 2 of one shape" in lines
    batches = take(loader, 12)
    assert {batch.text.ids.shape for batch in batches} == {(1, 24)}
    assert {batch.pooled_text.ids.shape for batch in batches} == {(1, 77)}
    empty = [int(batch.text.keep.sum()) == 1 for batch in batches]
    assert 0 < sum(empty) < 12  # half of the captions are dropped


def test_evaluation_sees_every_clip_in_order_with_its_caption_and_can_be_repeated(config):
    loader = built(config, size=100, micro=5, evaluation=True)
    batches = take(loader, 3)
    paths = [path.rsplit("/", 1)[1] for batch in batches for path in batch.paths]
    assert paths == [f"{number:02}.mp4" for number in [*range(12), 0, 1, 2]]  # 12 clips fill two batches and a half
    assert all(int(keep.sum()) > 1 for batch in batches for keep in batch.text.keep)
    loader.rewind()
    assert_same(take(loader, 3), batches)
    assert_same(take(loader, 3), batches)  # the next pass is the same one


def test_another_list_can_be_given(config, tmp_path):
    write_clip(tmp_path / "held_out.mp4", 12)
    data = write_list(tmp_path, [row("held_out.mp4", num_frames=12)])
    loader = built(config.held_out(str(data)), evaluation=True)
    assert next(iter(loader)).paths == (f"{tmp_path}/held_out.mp4",)


def test_without_groups_batches_are_padded_to_one_size(tmp_path, encoder_folder):
    write_clip(tmp_path / "long.mp4", 20, height=64, width=128)
    write_clip(tmp_path / "short.mp4", 12, height=32, width=128)
    entries = [row("long.mp4", num_frames=20), row("short.mp4", num_frames=12, height=32)]
    steps = [
        {"trans_type": "ToTensorVideo"},
        {"trans_type": "SpatialStrideCropVideo", "param": {"stride": 16, "force_5_ratio": False}},
    ]
    sizes = {"num_frames": 17, "min_num_frames": 9, "drop_short_ratio": 0.0, "force_resolution": False}
    target = {"num_frames": 17, "max_height": 64, "max_width": 128}
    config = data_config(
        write_list(tmp_path, entries),
        {**sizes, "max_hxw": 8192, "min_h_div_w_ratio": 0.2, "train_pipeline": {"video": steps}},
        {"group_data": False, "shuffle": False, "collate_param": target},
        tokenizer_config={"from_pretrained": str(encoder_folder / "t5")},
    )
    batch = next(iter(built(config, micro=2, evaluation=True)))
    assert batch.video.shape == (2, 3, 17, 64, 128)
    assert batch.keep[0].all() and batch.keep[1, :2, :4].all() and batch.keep[1].sum() == 2 * 4 * 16
    assert batch.video[1, :, 9:].abs().max() == 0 and batch.video[1, :, :, 32:].abs().max() == 0


def test_real_clips_run_through_worker_processes(clips, encoder_folder, tmp_path):
    (tmp_path / "data.txt").write_text(f"{clips},{clips}/annotations.json\n")
    config = data_config(
        tmp_path / "data.txt",
        {"train_fps": 8.05, "too_long_factor": 12.0, "max_height": 64, "max_width": 96},
        {"num_workers": 2},
        tokenizer_config={"from_pretrained": str(encoder_folder / "t5")},
    )
    loader = built(config, size=1)
    names = [batch.paths[0].rsplit("/", 1)[1] for batch in take(loader, 12)]
    assert len(set(names[:6])) == len(set(names[6:])) == 6 and names[:6] != names[6:]
    assert loader.bad_samples == {}


# ------------------------------------------------------------------------------- files that hang, ranks that share samples


def test_clips_that_vanish_are_in_the_ledger_before_the_run_ends(tmp_path):
    """The error named them, and the file said bad 0."""
    for number in range(3):
        write_clip(tmp_path / f"clip{number}.mp4", 9)
    rows = [row(f"clip{number}.mp4") for number in range(3)]
    ledger = Ledger(tmp_path / "bad.json")
    loader = loader_of(write_list(tmp_path, rows), ledger=ledger, group_size=1)
    batches = iter(loader)
    next(batches)
    for number in range(3):
        (tmp_path / f"clip{number}.mp4").unlink()
    with pytest.raises(DataError, match="3 files of shape .* in a row cannot be used"):
        for _ in range(3):
            next(batches)
    found = json.loads((tmp_path / "bad.json").read_text())
    assert found["bad"] >= 3 and len(found["bad_samples"]) == 3


def test_a_ledger_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file" / "bad.json")
    for _ in range(2):
        ledger.note([Substitution("a.mp4", "broken")], 1)
        ledger.sync()
    assert caplog.text.count("cannot be written") == 1


def clips_and(tmp_path, bad: str, count: int = 4):
    """A list of `count` good clips and of a bad one in the middle."""
    names = [f"{number}.mp4" for number in range(count)]
    for number, name in enumerate(names):
        write_clip(tmp_path / name, 12, first=20 * number)
    return write_list(tmp_path, [row(name, num_frames=12) for name in (*names[:2], bad, *names[2:])])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_hangs_is_given_up_once_and_replaced(tmp_path, workers, monkeypatch):
    patience = 3.0  # a good clip takes 0.05 s, on a busy machine more than one
    (tmp_path / "pipe.mp4").write_bytes(b"")
    data, load = clips_and(tmp_path, "pipe.mp4"), VideoSource.load

    def load_or_hang(self, clip, *arguments):
        if clip.row.path.endswith("/pipe.mp4"):
            time.sleep(600)  # as on a disk that does not answer
        return load(self, clip, *arguments)

    killed, replace = [], pool._Worker._replace

    def counted(self, reason):
        killed.append(reason)
        replace(self, reason)

    monkeypatch.setattr(VideoSource, "load", load_or_hang)
    monkeypatch.setattr(pool._Worker, "_replace", counted)
    loader = loader_of(data, group_size=1, num_workers=workers, preprocess={"timeout": patience})
    batches = take(loader, 15)  # three epochs
    assert len(killed) == 1 or (workers and len(killed) == 2)  # a request made ahead, for the next epoch, does not know
    assert all("pipe" not in batch.paths[0] for batch in batches)
    (entry,) = loader.bad_samples.values()
    assert entry.count == 3 and entry.reason == f"{tmp_path}/pipe.mp4: gave nothing in {patience:g} s"
    again = take(loader_of(data, group_size=1, preprocess={"timeout": patience}), 5)
    assert_same(again, batches[:5])


def test_a_file_that_takes_its_process_down_is_replaced(tmp_path, monkeypatch):
    data = clips_and(tmp_path, "3.mp4")
    load = VideoSource.load

    def load_or_die(self, clip, *arguments):
        if clip.row.path.endswith("/1.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, clip, *arguments)

    monkeypatch.setattr(VideoSource, "load", load_or_die)  # forked workers take it over
    loader = loader_of(data, group_size=1, num_workers=1, start_method="fork")
    assert all("/1.mp4" not in batch.paths[0] for batch in take(loader, 5))
    assert loader.bad_samples[f"{tmp_path}/1.mp4"].reason.endswith("its process was ended by signal 9")


@pytest.mark.parametrize(("workers", "ranks"), [(0, 2), (0, 3), (2, 3), (1, 5)])
def test_ranks_that_share_a_stream_take_turns_and_count_alike(clip_folder, workers, ranks):
    def parts():
        data = clip_folder / "data.txt"
        return [loader_of(data, num_workers=workers, sharing=Sharing(None, rank, ranks)) for rank in range(ranks)]

    single = loader_of(clip_folder / "data.txt")
    whole, states = [], []
    for _, batch in zip(range(26), single, strict=False):
        whole.append(batch)
        states.append(single.state_dict())
    loaders = parts()
    streams = [iter(loader) for loader in loaders]
    used = 0
    for turn in range(3):
        for _ in range(ranks if turn < 2 else ranks - 1):  # the last turn is broken off by a checkpoint
            assert_same([next(stream) for stream in streams], whole[turn * ranks : (turn + 1) * ranks])
            for loader in loaders:
                assert loader.state_dict() | {"ledger": None} == states[used] | {"ledger": None}
            used += 1
            assert sum(loader.ledger.good for loader in loaders) == used
    resumed = parts()
    for loader in resumed:
        loader.load_state_dict(json.loads(json.dumps(loaders[0].state_dict())))
    assert_same([next(iter(loader)) for loader in resumed], whole[used : used + ranks])


def test_ranks_with_the_same_samples_take_the_clips_of_the_first(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    data = clips_and(tmp_path, "pipe.mp4")
    first = loader_of(data, group_size=1, preprocess={"timeout": 1.0})
    expected = take(first, 10)
    (tmp_path / "pipe.mp4").unlink()
    write_clip(tmp_path / "pipe.mp4", 12)  # to the second rank, the file is good
    alone = take(loader_of(data, group_size=1), 10)
    assert [batch.paths for batch in alone] != [batch.paths for batch in expected]
    choices = iter([batch.paths for batch in expected])
    places = {path: place for place, path in enumerate(first.dataset.paths)}
    second = loader_of(data, group_size=1, sharing=Sharing(lambda mine: tuple(places[path] for path in next(choices))))
    assert_same(take(second, 10), expected)


def test_a_rank_that_cannot_read_what_the_first_has_read_says_so(tmp_path):
    data = clips_and(tmp_path, "bad.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"")
    loader = loader_of(data, group_size=1, sharing=Sharing(lambda mine: (2,)))
    with pytest.raises(DataError, match="bad.mp4: cannot be decoded"):
        take(loader, 1)
    assert loader_of(data, group_size=1, sharing=Sharing(lambda mine: None)) is not None


def test_when_the_first_rank_fails_all_do(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    data = write_list(tmp_path, [row("a.mp4"), row("b.mp4")])
    with pytest.raises(DataError, match="2 files of shape"):
        take(loader_of(data, sharing=Sharing(lambda mine: mine)), 1)


def test_items_are_changed_ahead_of_their_use_by_a_thread():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    stream = in_a_thread(items(), lambda item: (item, threading.current_thread() is threading.main_thread()))
    assert [next(stream) for _ in range(5)] == [(number, False) for number in range(5)]
    stream.close()
    assert len(made) < 10
    with pytest.raises(ZeroDivisionError):
        list(in_a_thread(iter([1, 0]), lambda item: 1 / item))
