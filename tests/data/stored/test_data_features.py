"""The files of stored features, and what is looked up in them."""

import contextlib
import json
import random

import pytest
import torch
from data_helpers import data_config, row, write_list

from mindspeed_mm.data.lists.filters import filter_rows
from mindspeed_mm.data.lists.sources import read_list
from mindspeed_mm.data.stored import features, sources
from mindspeed_mm.data.stored.features import Entry, PartReader, PartWriter, Stamp, digest
from mindspeed_mm.data.text import captions
from mindspeed_mm.data.text.cleaning import preprocess
from mindspeed_mm.errors import DataError


def write(folder, series, values: dict, rank=0):
    writer = PartWriter(folder, "text", series, rank)
    for name, value in values.items():
        if value is None:
            writer.add(Entry(digest(name), name, Stamp(1, 2), "it is broken"), {})
        else:
            writer.add(Entry(digest(name), name, Stamp(1, 2)), {"x": torch.full((2,), value), "y": torch.zeros(0)})
    writer.flush()


def value_of(reader, name):
    return reader.load(digest(name), ("x", "y"), name)[0][0].item()


def test_what_was_written_is_found_and_later_entries_count(tmp_path):
    write(tmp_path, 0, {"a": 1.0, "b": 2.0, "c": None})
    write(tmp_path, 0, {"d": 3.0}, rank=1)
    assert features.next_series(tmp_path, "text") == 1
    write(tmp_path, 1, {"b": 5.0, "c": 6.0, "a": None})
    reader = PartReader(tmp_path, "text")
    assert len(reader) == 4 and digest("a") in reader and digest("z") not in reader
    assert [value_of(reader, name) for name in "bcd"] == [5.0, 6.0, 3.0]
    with pytest.raises(DataError, match="^it is broken$"):
        value_of(reader, "a")
    with pytest.raises(DataError, match="a text: has no stored text features in"):
        reader.load(digest("z"), ("x",), "a text")


def test_shards_without_an_index_do_not_count_and_those_that_are_gone_are_bad_samples(tmp_path):
    write(tmp_path, 0, {"a": 1.0})
    write(tmp_path, 1, {"b": 1.0})
    (tmp_path / "text-0000-00000-00000.json").unlink()
    (tmp_path / "text-0001-00000-00000.safetensors").unlink()
    reader = PartReader(tmp_path, "text")
    assert digest("a") not in reader and digest("b") in reader
    with pytest.raises(DataError, match="b: stored features in .*text-0001-00000-00000.safetensors"):
        value_of(reader, "b")


def test_a_changed_value_and_a_changed_index_are_refused(tmp_path):
    write(tmp_path, 0, {"a": 1.0, "b": 2.0})
    (shard,) = tmp_path.glob("*.safetensors")
    (index,) = tmp_path.glob("text-*.json")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused = 0
    for name in "ab":
        with contextlib.suppress(DataError):
            value_of(PartReader(tmp_path, "text"), name)
            continue
        refused += 1
    assert refused == 1  # of the two, the one whose value it is
    text = index.read_text()
    for old, new in (('"a"', '"c"'), ("[1, 2]", "[1, 3]"), ("null", "{}"), (digest("a"), "no number"), ("[[", "[[[")):
        index.write_text(text.replace(old, new, 1))
        with pytest.raises(DataError, match="not a readable index of stored features .*; delete it and its shard"):
            PartReader(tmp_path, "text")


def test_indexes_of_the_first_releases_are_read(tmp_path):
    write(tmp_path, 0, {"a": 1.0})
    (index,) = tmp_path.glob("text-*.json")
    entries = [entry[:4] for entry in json.loads(index.read_text())["entries"]]
    index.write_text(json.dumps({"entries": entries}))
    assert value_of(PartReader(tmp_path, "text"), "a") == 1.0


def test_a_full_shard_is_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_SHARD_BYTES", 16)
    writer = PartWriter(tmp_path, "text", 0, 3)
    for number in range(5):
        writer.add(Entry(digest(str(number)), str(number)), {"x": torch.zeros(2)})
    assert [file.name for file in sorted(tmp_path.glob("*.safetensors"))] == [
        "text-0000-00003-00000.safetensors",
        "text-0000-00003-00001.safetensors",
    ]
    assert len(PartReader(tmp_path, "text")) == 4


def test_other_settings_are_refused_with_what_changed(tmp_path):
    made = {"sampling": {"fps": 24.0}, "weights": "abc", "steps": ("x", "y")}
    features.write_settings(tmp_path, "text", made)
    features.check_settings(tmp_path, "text", made)
    with pytest.raises(DataError) as caught:
        features.write_settings(tmp_path, "text", {**made, "sampling": {"fps": 8.0}, "more": 1})
    assert "more was null and is 1; sampling.fps was 24.0 and is 8.0" in str(caught.value)
    with pytest.raises(DataError, match="holds no stored video features; tools/extract_features.py makes them"):
        features.check_settings(tmp_path, "video", made)


@pytest.mark.parametrize("score", [None, 2.0, 5.0, 6.5])
def test_every_text_that_a_caption_can_become_is_known_beforehand(tmp_path, score):
    more = {} if score is None else {"aesthetic": score}
    source = write_list(tmp_path, [row("a.mp4", num_frames=12, cap=["One <b>cap</b>", "Another"], **more)])
    config = data_config(source, {"use_aesthetic": True, "cfg": 0.5}).dataset_param
    (one,) = read_list(source)
    texts = sources.possible_texts(one, config)
    rng, found = random.Random(1), set()
    for _ in range(1500):
        text = captions.choose_caption(one.captions, rng)
        text = preprocess(captions.add_aesthetic(text, one.aesthetic, one.kind, rng))
        found.add(captions.drop_caption(text, 0.5, rng))
    assert found == texts and len(texts) == (41 if score in (2.0, 6.5) else 3)


def test_crops_of_a_clip_have_keys_of_their_own_whatever_the_list(tmp_path):
    config = data_config("").dataset_param.preprocess_parameters
    rows = [row("a.mp4", num_frames=12), row("b.mp4", num_frames=12), row("a.mp4", num_frames=12, cut=[1, 13])]
    clips = filter_rows(read_list(write_list(tmp_path, rows)), config, None).clips
    again = filter_rows(read_list(write_list(tmp_path, rows[::-1])), config, None).clips
    keys = [sources.video_key(clip, crop) for clip in clips for crop in range(3)]
    assert len(set(keys)) == 9
    assert {sources.video_key(clip, crop) for clip in again for crop in range(3)} == set(keys)


def test_the_index_can_be_read_by_others(tmp_path):
    write(tmp_path, 0, {"a": 1.0, "b": None})
    content = json.loads((tmp_path / "text-0000-00000-00000.json").read_text())
    assert [entry[:4] for entry in content["entries"]] == [
        [digest("a"), "a", [1, 2], None],
        [digest("b"), "b", [1, 2], "it is broken"],
    ]
