"""Facts that annotations leave out."""

import json
import os
import shutil
import time

import pytest
from data_helpers import row, write_clip, write_list
from PIL import Image
from test_data_filters import SMALL_SIZE, preprocess

from mindspeed_mm.data.lists import probe
from mindspeed_mm.data.lists.filters import filter_rows
from mindspeed_mm.data.lists.sources import read_list


@pytest.fixture
def bare(tmp_path):
    """A list of files of every kind that says nothing but paths and captions; the rows."""
    write_clip(tmp_path / "a.mp4", 31, fps=30)
    write_clip(tmp_path / "b.MKV", 12, 96, 160)
    Image.new("RGB", (70, 50)).save(tmp_path / "c.png")
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    names = ["a.mp4", "b.MKV", "c.png", "zero.mp4", "text.mp4", "absent.mp4"]
    entries = [{"path": name, "cap": "x"} for name in names]
    entries.append({"path": "a.mp4", "cap": "x", "cut": [10, 20], "crop": [8, 120, 0, 60]})
    return read_list(write_list(tmp_path, entries))


def test_size_rate_and_length_come_from_the_files(bare, tmp_path):
    paths = probe.incomplete(bare)
    assert len(paths) == 6  # one of them is in two rows
    rows = probe.complete(bare, probe.probe(paths, processes=2))
    assert [(row.height, row.width, row.fps, row.num_frames) for row in rows[:3]] == [
        (64, 128, 30.0, 31),
        (96, 160, 24.0, 12),
        (50, 70, None, None),
    ]
    assert [row.fault.split(": ")[1] for row in rows[3:6]] == ["cannot be decoded"] * 3
    assert (rows[6].height, rows[6].width, rows[6].num_frames) == (60, 112, 10)  # cut and cropped


def test_what_an_annotation_says_is_left_alone(tmp_path):
    write_clip(tmp_path / "a.mp4", 31)
    entries = [row("a.mp4", num_frames=9), {**row("a.mp4", num_frames=9), "fps": None}]
    rows = read_list(write_list(tmp_path, entries))
    assert probe.incomplete(rows[:1]) == ()
    rows = probe.complete(rows, {str(tmp_path / "a.mp4"): probe.Facts(1, 2, 3.0, 4)})
    assert (rows[1].height, rows[1].width, rows[1].num_frames, rows[1].fps) == (64, 128, 9, 3.0)
    assert rows[0].fps == 24


def test_results_are_kept_until_a_file_changes(bare, tmp_path, monkeypatch):
    paths, cache = probe.incomplete(bare), tmp_path / "cache.json"
    first = probe.probe(paths, cache, processes=1)

    def no_pool(*arguments, **options):
        raise AssertionError("a file was opened again")

    with monkeypatch.context() as patched:
        patched.setattr(probe, "WorkerPool", no_pool)
        assert probe.probe(paths, cache) == first
    write_clip(tmp_path / "a.mp4", 20)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "absent.mp4")
    again = probe.probe(paths, cache, processes=1)
    changed = {path for path in paths if again[path] != first[path]}
    assert changed == {str(tmp_path / "a.mp4"), str(tmp_path / "absent.mp4")}
    assert again[str(tmp_path / "a.mp4")].num_frames == 20
    whole = cache.read_text()
    for damaged in ("{broken", "[1]", whole.replace("64", "65", 1), '{"version": 3, "files": [], "checksum": 0}'):
        cache.write_text(damaged)
        assert probe.probe(paths, cache, processes=1) == again
        assert json.loads(cache.read_text())["version"] == 3


def test_a_file_that_hangs_is_given_up(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", 9)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "slow.mp4")
    facts_of = probe.facts_of
    monkeypatch.setattr(
        probe, "facts_of", lambda path, kind: (time.sleep(60 * ("slow" in path)), facts_of(path, kind))[1]
    )
    paths = [str(tmp_path / "slow.mp4"), str(tmp_path / "a.mp4")]
    facts = probe.probe(paths, processes=1, timeout_s=1.0)
    assert facts[paths[0]].fault == f"{paths[0]}: gave nothing in 1 s" and facts[paths[1]].num_frames == 9


def test_a_pipe_is_refused_and_not_opened(tmp_path):
    for name in ("pipe.mp4", "pipe.png"):
        os.mkfifo(tmp_path / name)
    paths = [str(tmp_path / "pipe.mp4"), str(tmp_path / "pipe.png")]
    facts = probe.probe(paths, processes=1, timeout_s=30.0)
    assert [facts[path].fault for path in paths] == [
        f"{path}: is a pipe, socket or device, not a file" for path in paths
    ]


def test_an_unreadable_file_is_dropped_by_a_rule_with_its_reason(bare):
    rows = probe.complete(bare, probe.probe(probe.incomplete(bare), processes=1))
    result = filter_rows(rows, preprocess(**SMALL_SIZE), None)
    (unreadable,) = [item for item in result.dropped if item.rule == "unreadable"]
    assert unreadable.count == 3
    assert all("cannot be decoded" in reason for reason in unreadable.rows)
    report = json.loads(json.dumps(result.report()))
    assert (report["rows"], report["used"]) == (7, len(result.clips))
    assert report["dropped"]["unreadable"] == {"count": 3, "rows": list(unreadable.rows)}
    assert sum(report["shapes"].values()) == report["used"]
