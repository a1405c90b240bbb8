"""Names that a list can hold and a line of a log cannot, or that lead nowhere."""

import json
import os

import pytest
from data_helpers import data_config, row, write_clip, write_list

from mindspeed_mm.data.check.lists import check_list
from mindspeed_mm.data.lists import probe
from mindspeed_mm.data.lists.sources import read_list
from mindspeed_mm.errors import DataError


@pytest.mark.parametrize("name", [b"a\nb.mp4", b"a\xff.mp4", "a\u2028b.mp4".encode(), b"a\tb.mp4", b"a\x7f.mp4"])
def test_a_folder_with_a_name_that_no_line_can_hold_is_refused_in_one(tmp_path, name):
    for part in (name, name.replace(b".mp4", b".txt")):
        with open(os.path.join(os.fsencode(tmp_path), part), "wb") as file:
            file.write(b"a red circle")
    with pytest.raises(DataError, match="rename the file") as caught:
        read_list(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["a b.mp4", "红.mp4", "naïve.mp4", "a'b\"c.mp4", "%s%d.mp4", "-x.mp4", "a:b.mp4", "$HOME.mp4"]
)
def test_other_names_are_read(tmp_path, name):
    write_clip(tmp_path / name, 12)
    config = data_config(write_list(tmp_path, [row(name)]))
    found = check_list(config, global_batch_size=1, samples=1)
    assert not found.faults and len(found.decoded) == 1


@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_that_is_too_long_is_an_unreadable_file(tmp_path, length):
    write_clip(tmp_path / "a.mp4", 12)
    entries = [{"path": "n" * length + ".mp4", "cap": "a circle"}, {"path": "a.mp4", "cap": "a circle"}]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    rows = probe.listed(str(tmp_path / "list.json"), everything=True)
    assert rows[0].fault is not None and "too long" in rows[0].fault and rows[1].fault is None
    with pytest.raises(DataError, match=r"no such file|too long") as caught:
        read_list("n" * length + ".json")
    assert "\n" not in str(caught.value)


def test_links_that_lead_in_a_circle(tmp_path):
    """A folder in itself is not walked; a clip that is its own link is unreadable."""
    write_clip(tmp_path / "a.mp4", 12)
    (tmp_path / "a.txt").write_text("a circle")
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "b.mp4").symlink_to("b.mp4")
    (tmp_path / "b.txt").write_text("a square")
    (tmp_path / "clip.mp4").mkdir()
    rows = probe.listed(str(tmp_path))
    assert [os.path.basename(row.path) for row in rows] == ["a.mp4", "b.mp4"]
    assert rows[0].fault is None and "symbolic links" in rows[1].fault


def test_files_of_variable_rate_are_named(tmp_path, caplog):
    caplog.set_level("INFO")
    write_clip(tmp_path / "steady.mkv", 30)
    write_clip(tmp_path / "wild.mkv", 60, variable=True)
    entries = [{"path": name, "cap": "a circle"} for name in ("steady.mkv", "wild.mkv")]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    for _ in range(2):  # probed, and from the kept facts
        caplog.clear()
        probe.listed(str(tmp_path / "list.json"), everything=True)
        assert "1 of 2 files have a variable frame rate; their frames are taken by time: " in caplog.text
        assert "wild.mkv" in caplog.text and "steady.mkv" not in caplog.text
