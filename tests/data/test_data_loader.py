"""The loader: worker processes, resume, ranks, bad files."""

import functools
import json
import logging
import random
import re

import pytest
import torch
from data_helpers import LetterTokenizer, data_config, row, write_clip, write_list

from mindspeed_mm.data.collate import collate
from mindspeed_mm.data.dataset import ClipDataset
from mindspeed_mm.data.filters import filter_rows
from mindspeed_mm.data.index import read_list
from mindspeed_mm.data.loader import Loader, build_loader
from mindspeed_mm.data.sampler import GroupedSampler
from mindspeed_mm.errors import DataError

STRIDES = (8, 8, 8)


def loader_of(
    data_path, *, group_size=2, micro=1, rank=0, world_size=1, seed=5, preprocess=None, max_tries=10, **options
):
    config = data_config(data_path, preprocess).dataset_param
    clips = filter_rows(read_list(data_path), config.preprocess_parameters, None).clips
    dataset = ClipDataset(clips, config, LetterTokenizer(), None, seed=seed, max_tries=max_tries)
    sampler = GroupedSampler(
        dataset.keys, seed=seed, group_size=group_size, micro_batch_size=micro, rank=rank, world_size=world_size
    )
    join = functools.partial(collate, strides=STRIDES, patch_size=2)
    return Loader(dataset, sampler, join, **options)


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


@pytest.mark.parametrize(("workers", "start_method"), [(1, "fork"), (2, "fork"), (2, "forkserver")])
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


def test_a_position_of_another_list_or_seed_starts_the_next_epoch(clip_folder, caplog):
    loader = loader_of(clip_folder / "data.txt")
    take(loader, 3)
    other = loader_of(clip_folder / "data.txt", seed=6)
    with caplog.at_level(logging.WARNING, logger="mindspeed_mm"):
        other.load_state_dict(loader.state_dict())
    assert (other.epoch, other.state_dict()["consumed"]) == (1, 0)
    assert "another list of clips or seed; starting epoch 1" in caplog.text


# ---------------------------------------------------------------------------------------------------------- from a config


def built(config, **options):
    sizes = {"global_batch_size": 2, "micro_batch_size": 1, "dp_rank": 0, "dp_size": 1, "seed": 0}
    return build_loader(config, **{**sizes, **options}, autoencoder_strides=STRIDES, patch_size=2)


@pytest.fixture
def config(clip_folder, encoder_folder):
    return data_config(
        clip_folder / "data.txt",
        {"cfg": 0.5},
        {"num_workers": 1, "pin_memory": True},
        model_max_length=24,
        tokenizer_config={"from_pretrained": str(encoder_folder / "t5-v1_1-tiny")},
        tokenizer_config_2={"from_pretrained": str(encoder_folder / "CLIP-tiny")},
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
    loader = built(config, evaluation=True, micro_batch_size=5, global_batch_size=100)
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
    loader = built(config, evaluation=True, data_path=str(data))
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
        tokenizer_config={"from_pretrained": str(encoder_folder / "t5-v1_1-tiny")},
    )
    batch = next(iter(built(config, micro_batch_size=2, evaluation=True)))
    assert batch.video.shape == (2, 3, 17, 64, 128)
    assert batch.keep[0].all() and batch.keep[1, :2, :4].all() and batch.keep[1].sum() == 2 * 4 * 16
    assert batch.video[1, :, 9:].abs().max() == 0 and batch.video[1, :, :, 32:].abs().max() == 0


def test_real_clips_run_through_worker_processes(clips, encoder_folder, tmp_path):
    (tmp_path / "data.txt").write_text(f"{clips},{clips}/annotations.json\n")
    config = data_config(
        tmp_path / "data.txt",
        {"train_fps": 8.05, "too_long_factor": 12.0, "max_height": 64, "max_width": 96},
        {"num_workers": 2},
        tokenizer_config={"from_pretrained": str(encoder_folder / "t5-v1_1-tiny")},
    )
    loader = built(config, global_batch_size=1)
    names = [batch.paths[0].rsplit("/", 1)[1] for batch in take(loader, 12)]
    assert len(set(names[:6])) == len(set(names[6:])) == 6 and names[:6] != names[6:]
    assert loader.bad_samples == {}
