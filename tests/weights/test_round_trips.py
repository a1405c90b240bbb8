"""Conversions there and back give the same bits; directories of both published dialects are what their authors' are."""

import argparse
import json
import zipfile
import zlib

import pytest
import torch
from checkpoint_files import SMALL, files_below, last_block, mm_name, same, shards_of, whole_weights, write_directory
from safetensors.torch import load_file

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import layout
from mindspeed_mm.weights import merge_checkpoint, split_checkpoint
from mindspeed_mm.weights.sources import open_checkpoint

LAST = last_block(SMALL)


@pytest.fixture(scope="module")
def live():
    return whole_weights(0, text_tail=True)


@pytest.fixture(scope="module")
def average():
    return whole_weights(1, text_tail=True)


@pytest.fixture(scope="module")
def run(live, average, tmp_path_factory):
    """A run at TP 1 with EMA."""
    return write_directory(tmp_path_factory.mktemp("run"), shards_of(live, 1), shards_of(average, 1))


def read(root, rank=0) -> dict:
    """A TP rank's file, read as any other program would."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(
            layout.rank_directory(layout.find(root).directory, rank) / layout.MODEL_FILE, weights_only=True
        )


def tensors(state: dict) -> dict:
    return {name: value for name, value in state.items() if value is not None}


def test_tp_1_2_4_1_is_the_identity(run, live, average, tmp_path):
    source = run
    for step, size in enumerate((2, 4, 1)):
        source = split_checkpoint(source, tmp_path / str(step), size)
        states = [read(source, rank) for rank in range(size)]
        for rank, (mine, averaged) in enumerate(zip(shards_of(live, size), shards_of(average, size), strict=True)):
            assert same(tensors(states[rank]["model"]), mine)
            assert same(tensors(states[rank]["ema_model"]), averaged)
            assert states[rank]["args"].tensor_model_parallel_size == size and states[rank]["iteration"] == 7
        assert (source / layout.TRACKER).read_text() == "7"
    # Megatron's layers ask for an empty entry beside each weight of theirs that is split.
    assert read(source)["model"]["transformer_blocks.0.0.attn1.to_q._extra_state"] is None


def test_osp_to_mm_and_back(run, live, average, tmp_path):
    there = split_checkpoint(run, tmp_path / "mm", 2, dialect="MM")
    tail = [name for name in live if name.startswith((f"{LAST}.attn1.to_add_out", f"{LAST}.norm2.norm_enc"))]
    tail += [name for name in live if name.startswith(f"{LAST}.ff_enc")]
    assert len(tail) == 6
    for key, whole in (("model", live), ("ema_model", average)):
        kept = {name: value for name, value in whole.items() if name not in tail}
        for rank, shard in enumerate(shards_of(kept, 2)):
            state = read(there, rank)[key]
            assert same(state, {mm_name(name): value for name, value in shard.items()})  # and no _extra_state
        back = split_checkpoint(there, tmp_path / f"back_{key}", 1)
        assert same(tensors(read(back)[key]), kept)


def test_the_text_tail_can_be_written_for_open_sora_plans_own_code(run, live, tmp_path):
    bare = split_checkpoint(run, tmp_path / "bare", 1, text_tail="drop")
    assert len(live) - len(tensors(read(bare)["model"])) == 6
    again = split_checkpoint(bare, tmp_path / "again", 2, text_tail="write")
    shard = read(again, 1)["model"]
    wanted = shards_of(live, 2)[1]
    assert tensors(shard).keys() == wanted.keys()
    assert all(shard[name].shape == value.shape for name, value in wanted.items())


@pytest.mark.parametrize("ema", [False, True])
def test_pt_to_safetensors_and_back(run, live, average, tmp_path, ema):
    wanted = average if ema else live
    first = merge_checkpoint(run, tmp_path / "1", ema)
    second = merge_checkpoint(first, tmp_path / "2", format="safetensors")
    several = merge_checkpoint(first, tmp_path / "3", format="safetensors", largest=100_000)
    assert first.suffix == ".pt" and second.suffix == ".safetensors" and several.name.endswith(".index.json")
    assert same(torch.load(first, weights_only=True), wanted)
    assert same(load_file(second), wanted)
    table = json.loads(several.read_text())["weight_map"]
    assert table.keys() == wanted.keys() and len(set(table.values())) > 3
    assert all(table[name] in files_below(several.parent) for name in wanted)
    for number, source in enumerate((second, several, several.parent)):
        back = merge_checkpoint(source, tmp_path / f"back{number}")
        assert same(torch.load(back, weights_only=True), wanted)
    assert back.read_bytes() == merge_checkpoint(first, tmp_path / "again").read_bytes()  # equal content, equal files


def test_shards_of_tp_4_merge_to_the_whole(live, average, tmp_path):
    four = write_directory(tmp_path / "four", shards_of(live, 4), shards_of(average, 4))
    assert same(torch.load(merge_checkpoint(four, tmp_path / "out"), weights_only=True), live)
    assert same(torch.load(merge_checkpoint(four, tmp_path / "out", ema=True), weights_only=True), average)


def test_a_pt_file_is_a_sound_zip_archive(run, live, tmp_path):
    """Its table and checksums are our own work, and torch.load looks at neither."""
    path = merge_checkpoint(run, tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert len(archive.infolist()) == len(live) + 3  # data.pkl, byteorder, version
        sizes = {info.file_size for info in archive.infolist() if "/data/" in info.filename}
        assert sizes == {value.numel() * value.element_size() for value in live.values()}


def test_another_precision(run, live, tmp_path):
    path = merge_checkpoint(run, tmp_path / "wide", dtype="fp32")
    found = torch.load(path, weights_only=True)
    assert same(found, {name: value.float() for name, value in live.items()})
    back = merge_checkpoint(path, tmp_path / "narrow", dtype="bf16", format="safetensors")
    assert same(load_file(back), live)


def test_a_dry_run_says_everything_and_writes_nothing(run, tmp_path, caplog):
    with caplog.at_level("INFO", logger="mindspeed_mm"):
        split_checkpoint(run, tmp_path / "split", 2, dry_run=True)
        merge_checkpoint(run, tmp_path / "merged", dry_run=True)
    text = caplog.text
    assert files_below(tmp_path) == []
    for name in ("iter_0000007/mp_rank_00/model_optim_rng.pt", "iter_0000007/mp_rank_01", layout.TRACKER, "model.pt"):
        assert name in text
    assert "would write" in text and "MiB in all" in text and "bf16" in text


def test_an_output_that_exists_is_left_alone(run, tmp_path):
    split_checkpoint(run, tmp_path / "out", 1)
    before = files_below(tmp_path)
    with pytest.raises(CheckpointError, match="iter_0000007: exists already"):
        split_checkpoint(run, tmp_path / "out", 2)
    assert files_below(tmp_path) == before


def test_a_size_that_does_not_divide(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"does not divide by TP 3"):
        split_checkpoint(run, tmp_path / "out", 3)
    assert files_below(tmp_path) == []


def test_safetensors_come_with_checksums_that_are_compared_on_load(run, tmp_path):
    """The format has none of its own; a `.pt` has, so that it needs no record."""
    paths = [merge_checkpoint(run, tmp_path, ema=ema, format="safetensors", largest=40_000) for ema in (False, True)]
    record = json.loads((tmp_path / "checksums.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert sorted(record) == [file.name for file in files] and len(files) > 2
    for file in files:
        assert record[file.name] == [file.stat().st_size, zlib.crc32(file.read_bytes())]
    live, average = (open_checkpoint(path).files for path in paths)
    data = bytearray(average[0].read_bytes())
    data[-1] ^= 1
    average[0].write_bytes(data)
    load_all(open_checkpoint(paths[0]))
    with pytest.raises(CheckpointError, match=f"{average[0].name}: damaged, its checksum is not the one"):
        load_all(open_checkpoint(paths[1]))
    assert set(live) | set(average) == set(files)
    merge_checkpoint(run, tmp_path / "pt")
    assert not (tmp_path / "pt" / "checksums.json").exists()


def load_all(checkpoint) -> None:
    weights = checkpoint.weights()
    for name in weights:
        weights.part(name)
