"""Lists as other tools write them: every form of one list gives the same rows."""

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from data_helpers import write_clip
from PIL import Image

from mindspeed_mm.data.decode import media
from mindspeed_mm.data.lists import formats, probe
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.data.lists.sources import read_annotation, read_list
from mindspeed_mm.errors import DataError


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def row_of(tmp_path, entry) -> Row:
    (row,) = read_annotation(write(tmp_path / "a.json", [entry]))
    return row


FULL = {"height": 64, "width": 128, "num_frames": 12, "fps": 24}
NAMES = ("a.mp4", "b.mp4")


def facts(rows) -> list[tuple]:
    return [
        (row.path.rsplit("/", 1)[-1], *row.captions, row.height, row.width, row.num_frames, row.fps) for row in rows
    ]


@pytest.mark.parametrize("file", ["path", "file_name", "video", "video_path", "file_path", "Video Path"])
@pytest.mark.parametrize("text", ["cap", "caption", "text", "prompt", "name", "Caption"])
def test_keys_of_other_tools_are_read(tmp_path, file, text):
    row = row_of(tmp_path, {file: "a.mp4", text: "a cat", **FULL})
    assert facts([row]) == [("a.mp4", "a cat", 64, 128, 12, 24)]


def test_our_own_keys_come_before_others(tmp_path):
    entry = {
        "name": "clip 7",
        "text": "a dog",
        "cap": "a cat",
        "video": "b.mp4",
        "path": "a.mp4",
        "aes": 5,
        "aesthetic": 6,
    }
    row = row_of(tmp_path, entry)
    assert (row.path, row.captions, row.aesthetic) == ("a.mp4", ("a cat",), 6)
    assert row_of(tmp_path, {**entry, "cap": None, "aesthetic": None}).captions == ("a dog",)


def test_a_table_of_openvid(tmp_path):
    text = (
        "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds\n"
        'a.mp4,"A cat, sitting.",5.23,1.5,0.99,pan_left,120,29.97,4.004\n'
    )
    (row,) = read_annotation(write(tmp_path / "OpenVid.csv", text))
    assert (row.captions, row.aesthetic, row.num_frames, row.fps) == (("A cat, sitting.",), 5.23, 120, 29.97)


@pytest.mark.parametrize(
    "resolution, size",
    [
        ({"height": "64", "width": "128"}, (64, 128)),
        ([64, 128], (64, 128)),
        ("[64, 128]", (64, 128)),
        ("{'height': 64, 'width': 128}", (64, 128)),
        ("128x64", (64, 128)),
        ("128 × 64", (64, 128)),
        ([], (None, None)),
        ({}, (None, None)),
    ],
)
def test_a_size_may_be_an_object_a_list_or_a_text(tmp_path, resolution, size):
    row = row_of(tmp_path, {"path": "a.mp4", "resolution": resolution})
    assert (row.height, row.width) == size


def test_a_number_of_pixels_beside_height_and_width_is_left_alone(tmp_path):
    row = row_of(tmp_path, {"path": "a.mp4", "resolution": 8192, "height": 64, "width": 128})
    assert (row.height, row.width) == (64, 128)
    with pytest.raises(DataError, match=r"resolution must be \{height, width\}, .* found 8192"):
        row_of(tmp_path, {"path": "a.mp4", "resolution": 8192})


def test_numbers_in_texts_are_numbers(tmp_path):
    entry = {"path": "a.mp4", "fps": "30000/1001", "num_frames": " 121 ", "aesthetic": "5.5e0", "cut": "[3, 124]"}
    row = row_of(tmp_path, {**entry, "crop": "(0, 64, 8, 32)"})
    assert (row.fps, row.num_frames, row.aesthetic) == (30000 / 1001, 121, 5.5)
    assert (row.start, row.crop) == (3, (0, 64, 8, 32))
    assert row_of(tmp_path, {"path": "a.mp4", "fps": "N/A", "num_frames": ""}).fps is None


@pytest.mark.parametrize(
    "start, end, frames",
    [(1, 2.5, (24, 36)), ("0:01", "0:00:02.5", (24, 36)), (None, "PT2S", (0, 48)), ("1.5", None, (36, None))],
)
def test_a_part_in_seconds_becomes_frames_of_the_file(tmp_path, start, end, frames):
    row = row_of(tmp_path, {"path": "film.mp4", "fps": 24, "start": start, "end": end})
    assert (row.start, row.num_frames) == frames


def test_a_part_in_seconds_waits_for_the_frame_rate_of_the_file(tmp_path):
    write_clip(tmp_path / "film.mp4", 60, fps=30)
    entries = [{"video": "film.mp4", "caption": "x", "start": s, "end": s + 0.5} for s in (0, 1)]
    write(tmp_path / "list.json", entries)
    rows = probe.listed(tmp_path / "list.json")
    assert [(row.start, row.num_frames, row.fps) for row in rows] == [(0, 15, 30.0), (30, 15, 30.0)]


def test_a_cut_in_frames_counts_before_seconds_and_a_length_in_seconds_is_a_length(tmp_path):
    row = row_of(tmp_path, {"path": "a.mp4", "fps": 24, "cut": [5, 17], "start": 3, "end": 4, "num_frames": 12})
    assert (row.start, row.num_frames) == (5, 12)
    assert row_of(tmp_path, {"path": "a.mp4", "fps": 29.97, "duration": 4.004}).num_frames == 120
    assert row_of(tmp_path, {"path": "a.mp4", "start_frame": 4, "end_frame": 16}).num_frames == 12


@pytest.mark.parametrize(
    "entry, message",
    [
        ('"num_frames": 1e400', "num_frames must be a number, found inf"),
        ('"num_frames": -1e400', "num_frames must be a number, found -inf"),
        ('"num_frames": 1e300', "num_frames must be a number"),
        ('"num_frames": 1e12', "num_frames must be a whole number below 2^31"),
        ('"num_frames": "1e400"', "num_frames must be a number"),
        ('"num_frames": "\u0661\u0662"', "num_frames must be a number"),  # Arabic digits
        ('"num_frames": true', "num_frames must be a number, found True"),
        ('"num_frames": [[9]]', "num_frames must be a number, found a list of 1"),
        ('"num_frames": {"a": 1}', "num_frames must be a number, found an object of 1"),
        (f'"num_frames": {10**40}', "num_frames must be a number, found a number of more than 30 digits"),
        (f'"num_frames": 1{"0" * 5000}', "a number has thousands of digits"),
        ('"cut": [18446744073709551616]', "cut[0] must be a whole number below 2^31"),
        ('"cut": [-1]', "cut[0] is -1; frames count from 0"),
        ('"cut": ["x"]', "cut[0] must be a number, found 'x'"),
        ('"cut": [[1]]', "cut[0] must be a number"),
        ('"cut": 5', "cut must be a list of numbers, found 5"),
        ('"crop": [0, 1e99, 0, 1]', "crop must be a number"),
        ('"crop": [0, "b", 0, 1]', "crop must be a number, found 'b'"),
        ('"crop": [0, 64, null, 32]', "crop [0, 64, None, 32]: must be four numbers"),
        ('"crop": [0, 64, "None", 32]', "must be four numbers"),
        ('"crop": [0, 64, 8]', "must be four numbers"),
        ('"fps": "24/0"', "fps must be a number, found '24/0'"),
        ('"fps": "fast"', "fps must be a number, found 'fast'"),
        ('"fps": [24]', "fps must be a number"),
        ('"aesthetic": "high"', "aesthetic must be a number, found 'high'"),
        ('"resolution": [1, 2, 3]', "resolution must be {height, width}"),
        ('"resolution": {"height": 1e30, "width": 2}', "height must be a number"),
        ('"start": 3, "end": 2', "the end must lie behind the start"),
        ('"start": -3', "start -3 s: must be 0 or more"),
        ('"start": "soon"', "start must be a number, found 'soon'"),
        ('"cap": [["a"]]', "cap must be a text or a list of texts"),
        ('"cap": true', "cap must be a text or a list of texts, found True"),
        ('"resolution": ' + "[" * 100_000, "nested too deep"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_key_and_value(tmp_path, entry, message):
    with pytest.raises(DataError) as caught:
        read_annotation(write(tmp_path / "a.jsonl", f'{{"path": "a.mp4", {entry}}}'))
    text = str(caught.value)
    assert message in text and text.startswith(f"{tmp_path}/a.jsonl:1: ") and len(text) < 300 and "\n" not in text


def test_nan_is_missing_wherever_it_stands(tmp_path):
    text = (
        '[{"path": "a.mp4", "num_frames": NaN, "fps": NaN, "cut": [NaN, 3], "resolution": {"height": NaN, "width": 3}}]'
    )
    (row,) = read_annotation(write(tmp_path / "a.json", text))
    assert (row.num_frames, row.fps, row.start, row.height, row.width) == (3, None, 0, None, 3)


# ---------------------------------------------------------------------------------------------------------------- files

ENTRIES = [{"path": name, "cap": f"clip {name}", **FULL} for name in NAMES]


def table(mark: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ENTRIES[0], delimiter=mark)
    writer.writeheader()
    writer.writerows(ENTRIES)
    return text.getvalue()


CONTENTS = {
    "a.json": json.dumps(ENTRIES),
    "under data.json": json.dumps({"version": 2, "info": [1], "data": ENTRIES}),
    "under a key.json": json.dumps({"info": {"x": 1}, "annotations": ENTRIES}),
    "columns.json": json.dumps({key: [entry[key] for entry in ENTRIES] for key in ENTRIES[0]}),
    "pandas.json": json.dumps({key: {"0": ENTRIES[0][key], "1": ENTRIES[1][key]} for key in ENTRIES[0]}),
    "by file.json": json.dumps(
        {entry["path"]: {key: entry[key] for key in entry if key != "path"} for entry in ENTRIES}
    ),
    "lines.json": "\n".join(map(json.dumps, ENTRIES)),
    "array.jsonl": json.dumps(ENTRIES, indent=1),
    "a.ndjson": "\r\n".join(map(json.dumps, ENTRIES)) + "\r\n\r\n",
    "bom.jsonl": "\ufeff" + "\n".join(map(json.dumps, ENTRIES)),
    "a.csv": table(","),
    "bom.csv": "\ufeff" + table(","),
    "semicolons.csv": table(";"),
    "a.tsv": table("\t"),
    "tabs.CSV": table("\t"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CONTENTS)
def test_every_form_of_a_list_gives_the_same_rows(tmp_path, name, packed):
    content = CONTENTS[name].encode()
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    expected = [(name, f"clip {name}", 64, 128, 12, 24) for name in NAMES]
    assert facts(read_list(path)) == facts(read_annotation(path, "x")) == expected
    write(tmp_path / "data.txt", f"# a comment\n\n{tmp_path},{path.name}\n")
    assert facts(read_list(tmp_path / "data.txt")) == expected


@pytest.mark.parametrize("name", ["a.json.gz", "a.csv.gz"])
def test_a_damaged_gz_is_an_error_with_its_name(tmp_path, name):
    whole = gzip.compress(CONTENTS[name.removesuffix(".gz")].encode())
    for content in (whole[:30], b"no gzip", whole[:20] + b"\xff" * 9 + whole[29:]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            read_list(tmp_path / name)


def test_captions_by_file(tmp_path):
    write(tmp_path / "captions.json", {"a.mp4": "a cat", "sub/b.MKV": ["a dog", "an old dog"]})
    first, second = read_list(tmp_path / "captions.json")
    assert (first.captions, second.captions) == (("a cat",), ("a dog", "an old dog"))
    assert second.path == f"{tmp_path}/sub/b.MKV"


def test_a_list_without_captions_says_what_it_found_and_wants(tmp_path):
    path = write(tmp_path / "a.json", [{"path": "a.mp4", "title": "x"}])
    with pytest.raises(
        DataError, match=r"a.json: no key names the caption; found 'path', 'title'; wanted one of 'cap'"
    ):
        read_list(path)
    assert read_list(write(path, [{"path": "a.mp4", "caption": None}]))[0].captions == ()  # dropped later, and counted


def test_a_utf16_table_says_so(tmp_path):
    (tmp_path / "a.csv").write_bytes(table(",").encode("utf-16"))
    with pytest.raises(DataError, match=r"a.csv: cannot be read as UTF-8 text .*; it is UTF-16, save it as UTF-8"):
        read_list(tmp_path / "a.csv")


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """Two clips, without any list."""
    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    write_clip(folder / "a.mp4", 12)
    write_clip(folder / "sub" / "b.mp4", 12)
    return folder


EXPECTED = [("a.mp4", "clip a.mp4", 64, 128, 12, 24.0), ("b.mp4", "clip b.mp4", 64, 128, 12, 24.0)]


def test_a_text_beside_each_clip(folder):
    write(folder / "a.txt", "clip a.mp4\n")
    write(folder / "sub" / "b.caption", "clip b.mp4")
    for source in (
        folder,
        write(folder.parent / "data.txt", "clips\n"),
        write(folder.parent / "data.txt", "clips/,\n"),
    ):
        assert facts(probe.listed(source)) == EXPECTED
    write_clip(folder / "c.mp4", 12)
    assert [row.captions for row in read_list(folder)] == [("clip a.mp4",), (), ("clip b.mp4",)]


def test_a_folder_may_hold_images_with_their_texts(folder):
    Image.new("RGB", (32, 16)).save(folder / "still.png")
    write(folder / "still.txt", "a still")
    write(folder / "a.txt", "clip a.mp4")
    found = {Path(row.path).name: row for row in probe.listed(folder)}
    still = found["still.png"]
    assert (still.kind, still.captions, still.height, still.width) == ("image", ("a still",), 16, 32)
    assert found["a.mp4"].num_frames == 12


def test_a_line_may_repeat_its_source_and_name_its_trigger_word(folder):
    write(folder / "a.txt", "clip a.mp4")
    write(folder / "a.json", [{"path": "a.mp4", "cap": "by list"}])
    lines = f"{folder},{folder}/a.json,3\n{folder},,2,trigger=ohwx\n{folder},repeats=1, trigger=\n{folder}\n"
    rows = [row for row in read_list(write(folder.parent / "data.txt", lines)) if row.captions]
    assert [(row.captions[0], row.trigger) for row in rows] == [
        *[("by list", None)] * 3,
        *[("clip a.mp4", "ohwx")] * 2,
        ("clip a.mp4", ""),
        ("clip a.mp4", None),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{0},{0}/a.json,0", "repeats '0': must be a whole number from 1 to 10000"),
        ("{0},{0}/a.json,repeats=often", "repeats 'often': must be a whole number"),
        ("{0},{0}/a.json,3,sks", "found 4 fields in .*'sks' is no option: a number of repeats, or trigger=WORD"),
        ("{0},12", "annotation file 12 does not exist; `.*,,12` repeats a folder"),
        (",,3", "names no source"),
    ],
)
def test_a_wrong_option_of_a_line_is_refused(folder, line, message):
    write(folder / "a.json", [{"path": "a.mp4", "cap": "by list"}])
    with pytest.raises(DataError, match=message):
        read_list(write(folder.parent / "data.txt", line.format(folder)))


def test_a_line_of_prompts_for_each_line_of_videos(folder):
    write(folder / "prompts.txt", "clip a.mp4\nclip b.mp4\n")
    write(folder / "videos.txt", "a.mp4\r\nsub/b.mp4\r\n")
    assert facts(probe.listed(folder)) == EXPECTED
    write(folder / "videos.txt", "a.mp4\n")
    with pytest.raises(DataError, match=r"prompts.txt has 2 lines, .*videos.txt 1; line n of one belongs to line n"):
        read_list(folder)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_with_its_metadata(folder, name):
    entries = [{"file_name": "a.mp4", "text": "clip a.mp4"}, {"file_name": "sub/b.mp4", "text": "clip b.mp4"}]
    csv_text = "file_name,text\n" + "".join(f"{entry['file_name']},{entry['text']}\n" for entry in entries)
    write(folder / name, csv_text if name.endswith("csv") else "\n".join(map(json.dumps, entries)))
    assert facts(probe.listed(folder)) == EXPECTED
    assert facts(probe.listed(folder / name)) == EXPECTED


def test_a_folder_of_which_nothing_can_be_made_says_why(folder):
    with pytest.raises(DataError, match=r"none of 2 clips has a caption beside it; `clip.mp4` wants `clip.txt`"):
        read_list(folder)
    (folder.parent / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no clips"):
        read_list(folder.parent / "empty")
    write(folder / "metadata.csv", "")
    write(folder / "metadata.jsonl", "")
    with pytest.raises(DataError, match=r"holds metadata.csv and metadata.jsonl; name the one to read in data.txt"):
        read_list(folder)


# --------------------------------------------------------------------------------------------------------------- shards


def write_tar(path, members: dict[str, bytes], mode: str = "w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shard(folder):
    members = {
        "./000.mp4": (folder / "a.mp4").read_bytes(),
        "./000.txt": b"clip a.mp4\n",
        "more/001.txt": b"clip b.mp4",
        "more/001.json": json.dumps({"fps": 24, "width": 128}).encode(),
        "more/001.seg.mp4": (folder / "sub" / "b.mp4").read_bytes(),
        "notes.md": b"no clip",
    }
    return write_tar(folder.parent / "000000.tar", members)


def test_members_of_a_shard_are_read_in_place(shard, folder):
    rows = probe.listed(shard)
    assert [(row.captions, row.height, row.width, row.num_frames, row.fps) for row in rows] == [
        (("clip a.mp4",), 64, 128, 12, 24.0),
        (("clip b.mp4",), 64, 128, 12, 24),
    ]
    assert [media.open_bytes(row.path).read() for row in rows] == [
        (folder / "a.mp4").read_bytes(),
        (folder / "sub" / "b.mp4").read_bytes(),
    ]
    assert [row.kind for row in rows] == ["video", "video"]


@pytest.mark.parametrize(
    "line", ["000000.tar", "{000000..000001}.tar", "*.tar", "shards", ",000000.tar", "clips,000000.tar"]
)
def test_shards_are_named_one_by_one_or_together(shard, tmp_path, line):
    (tmp_path / "000001.tar").write_bytes(shard.read_bytes())
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "000000.tar").write_bytes(shard.read_bytes())
    rows = read_list(write(tmp_path / "data.txt", f"{line}\n"))
    assert len(rows) == (4 if "*" in line or ".." in line else 2)


def test_what_is_no_shard_is_refused(shard, tmp_path):
    content = shard.read_bytes()
    for damaged in (content[:2000], b"", b"no tar" * 200, gzip.compress(content)):
        (tmp_path / "bad.tar").write_bytes(damaged)
        with pytest.raises(DataError, match=r"bad.tar: (not a readable tar|holds no clips)"):
            read_list(tmp_path / "bad.tar")
    write_tar(tmp_path / "bad.tar", {"a.mp4": b"x", "a.json": b"{"})
    with pytest.raises(DataError, match=r"bad.tar member a.json: not valid JSON"):
        read_list(tmp_path / "bad.tar")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=r"a.tar.gz: annotation files end in"):
        read_list(write(tmp_path / "data.txt", "a.tar.gz\n"))


def test_a_shard_that_shrank_since_is_an_error_of_the_clip(shard):
    path = read_list(shard)[1].path
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(OSError, match="before the end of its member"):
        media.open_bytes(path)


def test_a_list_format_is_a_row_of_the_table(tmp_path, monkeypatch):
    def bars(path):
        for number, line in enumerate(formats.read_text(path).splitlines(), start=1):
            yield f"{path} line {number}", dict(zip(("path", "cap", "fps"), line.split("|"), strict=False))

    monkeypatch.setitem(formats.FORMATS, ".bars", bars)
    rows = read_list(write(tmp_path / "list.bars", "a.mp4|a cat|24\nb.mp4|a dog|30"))
    assert [(row.captions, row.fps) for row in rows] == [(("a cat",), 24), (("a dog",), 30)]
    with pytest.raises(DataError, match="list.bars line 1: fps must be a number, found 'fast'"):
        read_list(write(tmp_path / "list.bars", "a.mp4|a cat|fast"))
