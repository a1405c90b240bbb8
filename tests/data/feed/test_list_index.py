"""The index of a long list changes nothing but memory and time: same rows, same order, same batches, same messages."""

import dataclasses
import functools
import json
import logging
import multiprocessing
import os
import pickle
import random
import signal

import pytest
import torch
from data_helpers import MULTI, STEPS, LetterTokenizer, data_config, row, sampler_of, write_clip, write_list

from mindspeed_mm.data.feed import list_cache
from mindspeed_mm.data.feed.build import build_loader
from mindspeed_mm.data.feed.collate import collate
from mindspeed_mm.data.feed.dataset import ClipDataset, Tokens, emptied_captions, filtered_list
from mindspeed_mm.data.feed.list_index import IndexedClips, paths_of, shapes_of, triggers_of
from mindspeed_mm.data.feed.sampler import Position, Split
from mindspeed_mm.data.feed.video import VideoSource
from mindspeed_mm.data.lists.filters import common_shapes
from mindspeed_mm.errors import DataError


@pytest.fixture(autouse=True)
def _short_lists_have_indexes(monkeypatch):
    monkeypatch.setattr(list_cache, "_LEAST", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of two shapes and odd rows, in two annotation files of which one is repeated and has a trigger word."""
    folder = tmp_path_factory.mktemp("listed")
    for number in range(6):
        write_clip(folder / f"{number}.mp4", 12, first=20 * number)
    rows = [row(f"{number % 6}.mp4", num_frames=12, cap=["one", f"caption {number}, 猫"]) for number in range(9)]
    rows[3] |= {"aesthetic": 6.5, "crop": [0, 64, 0, 64], "resolution": {"height": 64, "width": 64}}
    rows[4] |= {"fps": "24000/1001", "start": 0.1, "end": 0.45, "num_frames": None, "checksum": "aB" * 32}
    rows[5] |= {"cap": "<br>"}
    odd = [row("none.txt"), row("short.mp4", num_frames=3), row("no caption.mp4", cap=None), row("slow.mp4", fps=5)]
    write_list(folder, [*rows, *odd, {**row("0.mp4", num_frames=12), "fps": None}])
    lines = [json.dumps(row(f"{number}.mp4", num_frames=11, cap=f"plain words {number}")) for number in range(6)]
    (folder / "more.jsonl").write_text("\n".join(lines))
    (folder / "both.txt").write_text(f"{folder},data.json\n{folder},more.jsonl,repeats=2,trigger=ohwx\n")
    return folder


def config_of(data_path, index="none", preprocess=None):
    config = data_config(data_path, {**MULTI, "train_pipeline": {"video": STEPS, "image": STEPS}, **(preprocess or {})})
    basic = dataclasses.replace(config.dataset_param.basic_parameters, list_index_folder=str(index))
    return dataclasses.replace(config, dataset_param=dataclasses.replace(config.dataset_param, basic_parameters=basic))


def both_ways(data_path, index, size=None, preprocess=None):
    """What is found without an index, and with one."""
    configs = (config_of(data_path, where, preprocess) for where in ("none", index))
    return [filtered_list(config.dataset_param, global_batch_size=size) for config in configs]


@pytest.mark.parametrize("preprocess", [{}, {"auto_buckets": 1}, {"drop_short_ratio": 0.5, "num_frames": 17}])
@pytest.mark.parametrize("size", [None, 2, 4])
def test_rows_order_and_reports_are_those_of_the_list(folder, tmp_path, size, preprocess):
    read, found = both_ways(folder / "both.txt", tmp_path, size, preprocess)
    assert isinstance(found.clips, IndexedClips) and isinstance(read.clips, tuple)
    for ours, theirs in ((found.clips, read.clips), (found.usable, read.usable)):
        assert len(ours) == len(theirs) and tuple(ours) == theirs and tuple(ours[1:-1:3]) == theirs[1:-1:3]
        assert tuple(shapes_of(ours)) == shapes_of(theirs) and tuple(paths_of(ours)) == paths_of(theirs)
        config = data_config("x").dataset_param
        for cleans in (config, dataclasses.replace(config, use_clean_caption=False)):
            assert emptied_captions(ours, cleans) == emptied_captions(theirs, cleans)
    assert triggers_of(found.usable) == triggers_of(read.usable) == {None, "ohwx"}
    assert found.lines() == read.lines() and found.report() == read.report() and found.dropped
    assert found.assumed == read.assumed == 1


def loader_of(data_path, index, rank=0, world_size=1):
    config = config_of(data_path, index)
    dataset = config.dataset_param
    clips = filtered_list(dataset, global_batch_size=2).usable
    assert isinstance(clips, IndexedClips) == (index != "none")
    videos, texts = VideoSource(dataset.preprocess_parameters), Tokens(LetterTokenizer(), None)
    made = ClipDataset(clips, dataset, videos, texts, seed=3)
    join = functools.partial(collate, strides=(8, 8, 8), patch_size=2)
    return build_loader(made, config, Split(2, 1, rank, world_size), join, seed=3)


def take(loader, count):
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_and_resumes_are_those_of_the_list(folder, tmp_path, rank):
    """Two ranks, a stop within an epoch, and a resume with an index of a run that had none, and the other way round."""
    read, found = (loader_of(folder / "both.txt", index, rank, 2) for index in ("none", tmp_path))
    assert read.epoch_size == found.epoch_size
    ahead = take(read, 5)
    assert_same(take(found, 5), ahead)
    assert json.dumps(read.state_dict()) == json.dumps(found.state_dict())
    rest = take(read, read.epoch_size // 2)
    for index, state in (("none", found.state_dict()), (tmp_path, found.state_dict())):
        later = loader_of(folder / "both.txt", index, rank, 2)
        later.load_state_dict(json.loads(json.dumps(state)))
        assert_same(take(later, len(rest)), rest)
        assert later.epoch == 1


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert (one.paths, one.addresses) == (other.paths, other.addresses)
        assert torch.equal(one.video, other.video) and torch.equal(one.text.ids, other.text.ids)


def test_a_worker_without_its_parents_memory_opens_the_index_again(folder, tmp_path):
    work = loader_of(folder / "both.txt", tmp_path)._work._substitutes  # what a worker is given
    content = pickle.dumps(work)
    assert len(content) < 20_000
    dataset, again = work._dataset, pickle.loads(content)._dataset
    assert isinstance(again.clips, IndexedClips) and tuple(again.clips) == tuple(dataset.clips)
    assert tuple(again.keys) == tuple(dataset.keys) and tuple(again.paths) == tuple(dataset.paths)
    assert torch.equal(again.sample(2, 1).video, dataset.sample(2, 1).video)
    content = pickle.dumps(dataset.paths)
    (folder / "more.jsonl").touch()
    loader_of(folder / "both.txt", tmp_path)
    with pytest.raises(DataError, match="another run has replaced the index of the list; start this run again"):
        pickle.loads(content)


# -------------------------------------------------------------------------------------------------------- making it anew


def made(caplog, data_path, index, **options) -> bool:
    """True if an index is made, and not found."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="mindspeed_mm"):
        read, found = both_ways(data_path, index, **options)
    assert tuple(found.usable) == read.usable
    assert f"the list is taken from its index {index}" in caplog.text
    return "making an index of the list, once for all processes of this node" in caplog.text


def test_an_index_is_made_once_and_again_if_anything_behind_it_changes(folder, tmp_path, caplog):
    data = folder / "both.txt"
    assert made(caplog, data, tmp_path) and not made(caplog, data, tmp_path)
    assert not made(caplog, data, tmp_path, size=2, preprocess={"cfg": 0.3, "trigger_word": "sks", "fixed_crops": 2})
    assert made(caplog, data, tmp_path, preprocess={"max_hxw": 64 * 64})
    assert not made(caplog, data, tmp_path)  # both have a place
    for name in ("both.txt", "data.json", "more.jsonl"):
        (folder / name).write_text((folder / name).read_text() + " ")
        assert made(caplog, data, tmp_path) and not made(caplog, data, tmp_path)
    assert "damaged" not in caplog.text


def test_clips_that_move_from_the_working_directory_to_the_list_are_noticed(tmp_path, caplog, monkeypatch):
    (tmp_path / "lists").mkdir()
    data = tmp_path / "lists" / "a.json"
    data.write_text(json.dumps([row("a.mp4"), row("b.mp4")]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()
    assert made(caplog, data, tmp_path) and not made(caplog, data, tmp_path)
    (tmp_path / "a.mp4").rename(tmp_path / "lists" / "a.mp4")
    assert made(caplog, data, tmp_path)


def test_a_damaged_index_is_named_and_made_anew(folder, tmp_path, caplog):
    data = folder / "both.txt"
    assert made(caplog, data, tmp_path)
    (index,) = (path for path in tmp_path.iterdir() if path.is_dir())
    files = sorted(index.iterdir())
    assert {file.name for file in files} >= {"header.json", "lines.bin", "lines.ends", "rows.bin", "codes.bin"}
    for number, file in enumerate(files):
        content = file.read_bytes()
        flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:] if content else b"x"
        file.write_bytes((flipped, content[:-1] if content else b"xy")[number % 2])
        if number == 3:
            file.unlink()
        assert made(caplog, data, tmp_path), file
        assert f"{index}: the index of the list is damaged" in caplog.text, file
    assert sorted(path.name for path in tmp_path.iterdir()) == [index.name, f"{index.name}.lock"]


def _filter(data, index, least, answers):
    list_cache._LEAST = least
    logging.getLogger("mindspeed_mm").setLevel(logging.INFO)
    said = []
    logging.getLogger("mindspeed_mm").addHandler(handler := logging.Handler())
    handler.emit = lambda record: said.append(record.getMessage())
    found = filtered_list(config_of(data, index).dataset_param, global_batch_size=None)
    answers.put(
        (sum("making an index" in line for line in said), len(found.usable), isinstance(found.usable, IndexedClips))
    )


def test_of_several_processes_one_makes_it(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    ranks = [context.Process(target=_filter, args=(folder / "both.txt", tmp_path, 0, answers)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    found = [answers.get() for _ in ranks]
    for rank in ranks:
        rank.join()
    assert sum(makes for makes, *_ in found) == 1
    assert {(count, mapped) for _, count, mapped in found} == {(22, True)}


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_maker_ends_in_one_line_and_leaves_no_index(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(list_cache, "_fill", _killed)  # in the maker, which is forked
        with pytest.raises(
            DataError, match="was not made: its process was ended by signal 9; .* list_index_folder 'none'"
        ):
            both_ways(folder / "both.txt", tmp_path)
    assert not list(tmp_path.rglob("header.json"))
    read, found = both_ways(folder / "both.txt", tmp_path)
    assert tuple(found.clips) == read.clips


def test_a_list_that_cannot_have_an_index_is_read(folder, tmp_path, caplog):
    """A file is in the way of the folder; and the clips themselves have to say their sizes."""
    (tmp_path / "file").touch()
    read, found = both_ways(folder / "both.txt", tmp_path / "file" / "cache")
    assert (
        found == read and "so every process reads the list; choose another list_index_folder, or 'none'" in caplog.text
    )
    bare = [{"path": f"{number}.mp4", "cap": "a caption"} for number in range(6)]
    data = write_list(folder, bare, "bare")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="mindspeed_mm"):
            read, found = both_ways(data, tmp_path)
        assert found == read and len(found.usable) == 6 and "taken from its index" not in caplog.text
    assert "making an index" not in caplog.text  # known to be none
    assert (tmp_path / next(tmp_path.glob("bare-*[0-9a-f]")).name / "header.json").exists()


def test_a_short_list_and_a_folder_of_clips_have_none(folder, tmp_path, monkeypatch):
    (tmp_path / "clips").mkdir()
    for name in ("0.mp4", "1.mp4"):
        (tmp_path / "clips" / name).symlink_to(folder / name)
        (tmp_path / "clips" / name).with_suffix(".txt").write_text("a caption")
    read, found = both_ways(tmp_path / "clips", tmp_path / "cache")
    assert found == read
    monkeypatch.setattr(list_cache, "_LEAST", 10_000)
    read, found = both_ways(folder / "both.txt", tmp_path / "cache")
    assert found == read and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("content", "words"), [
    ('{"path": "a.mp4", "cap": "a", "fps": "fast"}', r"more\.jsonl:2: fps must be a number, found 'fast'"),
    ("{", r"more\.jsonl:2: not valid JSON"),
])  # fmt: skip
def test_a_bad_row_is_named_with_its_list(tmp_path, content, words):
    (tmp_path / "more.jsonl").write_text(f"{json.dumps(row('a.mp4'))}\n{content}\n")
    for index in ("none", tmp_path / "cache"):
        with pytest.raises(DataError, match=words):
            filtered_list(config_of(tmp_path / "more.jsonl", index).dataset_param, global_batch_size=None)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_list_without_usable_rows_says_why(tmp_path):
    data = write_list(tmp_path, [row("a.mp4", num_frames=2), row("b.mp4", fps=1)])
    errors = []
    for index in ("none", tmp_path / "cache", tmp_path / "cache"):
        with pytest.raises(DataError, match="none of 2 rows can be used: too_short 1") as caught:
            filtered_list(config_of(data, index).dataset_param, global_batch_size=2)
        errors.append(str(caught.value))
    assert len(set(errors)) == 1


# ---------------------------------------------------------------------------------------------- the order, as plain Python


def plain_order(keys, members, size, generator, drop_last):
    """The order of an epoch, item by item. keys: None for one bucket."""
    buckets = {}
    for index in members:
        buckets.setdefault("" if keys is None else keys[index], []).append(index)
    groups = []
    for bucket in sorted(buckets.values(), key=len, reverse=True):
        if generator is not None:
            bucket = [bucket[place] for place in torch.randperm(len(bucket), generator=generator).tolist()]
        whole = len(bucket) // size * size
        groups += [bucket[begin : begin + size] for begin in range(0, whole, size)]
        if whole < len(bucket) and not drop_last:
            filled = bucket[whole:] + bucket[:whole]
            groups.append([filled[place % len(filled)] for place in range(size)])
    if generator is not None and keys is not None:
        groups = [groups[place] for place in torch.randperm(len(groups), generator=generator).tolist()]
    return [index for group in groups for index in group]


def test_the_order_is_the_plain_one_also_after_a_change_of_the_global_batch():
    draw = random.Random(0)
    for _ in range(60):
        keys = [f"{draw.choice((1, 9, 17, 25))}x{draw.choice((32, 64))}x64" for _ in range(draw.randrange(1, 120))]
        size, before = draw.choice((1, 2, 3, 8)), draw.choice((1, 2, 5))
        options = {name: draw.random() < 0.5 for name in ("grouped", "shuffle", "drop_last", "drop_rare")}
        try:
            one = sampler_of(keys, seed=7, group_size=size, **options)
        except DataError:
            continue
        position = Position(2, 0, ((before, draw.randrange(0, len(keys), before)),))
        seen = set()
        for group, consumed in (*position.earlier, (size, None)):
            counts = {key: keys.count(key) for key in keys}
            used = common_shapes(counts, group) if options["drop_rare"] else counts
            members = [index for index, key in enumerate(keys) if key in used and index not in seen]
            generator = torch.Generator().manual_seed(9) if options["shuffle"] else None
            order = plain_order(keys if options["grouped"] else None, members, group, generator, options["drop_last"])
            seen |= set(order[:consumed])
        assert one._order(position).tolist() == order
