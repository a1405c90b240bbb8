"""data.txt and annotation files."""

import csv
import json
import re
import sys

import pytest

from mindspeed_mm.data.lists.sources import read_annotation, read_list
from mindspeed_mm.errors import DataError


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_rows_of_all_sources_come_in_order_with_their_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "one.json", [{"path": "1.mp4", "cap": "a"}, {"path": "/elsewhere/2.mp4"}])
    write(tmp_path / "two.jsonl", '{"path": "3.JPG", "cap": "b"}\n\n{"path": "4.webm"}\n')
    data = write(
        tmp_path / "data.txt", f"{tmp_path}/a,{tmp_path}/one.json\n\n  {tmp_path}/b , {tmp_path}/two.jsonl \r\n"
    )
    rows = read_list(data)
    assert [row.path for row in rows] == [
        f"{tmp_path}/a/1.mp4",
        "/elsewhere/2.mp4",
        f"{tmp_path}/b/3.JPG",
        f"{tmp_path}/b/4.webm",
    ]
    assert [row.kind for row in rows] == ["video", "video", "image", "video"]


def test_missing_keys_stay_missing(tmp_path):
    (row,) = read_annotation(write(tmp_path / "a.json", [{"path": "x.mp4", "extra": {"ignored": 1}}]))
    assert row.captions == () and row.start == 0
    assert (row.height, row.width, row.num_frames, row.fps, row.crop, row.aesthetic) == (None,) * 6


def test_fields_are_read(tmp_path):
    entry = {
        "path": "x.mp4",
        "cap": ["one", "two"],
        "resolution": {"height": 480.0, "width": 640},
        "num_frames": 121,
        "fps": 29.97,
        "cut": [37, 158],
        "crop": [0, 640, 10, 470],
        "aes": 5.5,
    }
    (row,) = read_annotation(write(tmp_path / "a.json", [entry]), "folder")
    assert row.path == "folder/x.mp4" and row.captions == ("one", "two")
    assert (row.height, row.width, row.num_frames, row.fps, row.start) == (480, 640, 121, 29.97, 37)
    assert row.crop == (0, 640, 10, 470) and row.aesthetic == 5.5


def test_null_and_nan_count_as_missing(tmp_path):
    text = '[{"path": "x.mp4", "cap": NaN, "fps": NaN, "cut": null, "crop": [null, null, null, null], "aesthetic": null, "aes": 6}]'
    (row,) = read_annotation(write(tmp_path / "a.json", text))
    assert (row.captions, row.fps, row.start, row.crop, row.aesthetic) == ((), None, 0, None, 6)


def test_captions_of_digits_stay_texts_and_line_separators_do_not_end_a_line(tmp_path):
    text = json.dumps({"path": "x.mp4", "cap": "12 a\u2028b"}, ensure_ascii=False)
    (row,) = read_annotation(write(tmp_path / "a.jsonl", text))
    assert row.captions == ("12 a\u2028b",)


def test_half_a_surrogate_pair_in_a_caption_becomes_a_question_mark(tmp_path):
    (row,) = read_annotation(
        write(tmp_path / "a.json", r'[{"path": "x.mp4", "cap": ["a \ud83d cat", "\ud83d\ude00"]}]')
    )
    assert row.captions == ("a ? cat", "\U0001f600")


ENTRIES = [
    {
        "path": "x.mp4",
        "cap": ['one, "two"', "three\nfour"],
        "resolution": {"height": 480, "width": 640},
        "num_frames": 121,
        "fps": 29.97,
        "cut": [37, 158],
        "crop": [0, 640, 10, 470],
        "aesthetic": 5.5,
    },
    {"path": "12.mp4", "cap": "[a] caption [in brackets]", "resolution": {"height": 480, "width": 640}, "fps": 30},
    {"path": "nan.jpg", "cap": "12", "resolution": {"height": 32, "width": 64}},
]


def as_csv(path, entries, dump=json.dumps, flat=False):
    """A table with every key; texts as they are, the rest through `dump`; resolution in two columns if `flat`."""
    entries = [dict(entry) for entry in entries]
    if flat:
        for entry in entries:
            size = entry.pop("resolution")
            entry |= {"resolution.height": size["height"], "resolution.width": size["width"]}
    names = list(dict.fromkeys(name for entry in entries for name in entry)) + ["unrelated"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(names)
        for entry in entries:
            cells = [entry.get(name, "") for name in names]
            table.writerow([cell if isinstance(cell, str) else dump(cell) for cell in cells])
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv", "csv of pandas", "csv, flat", "parquet", "parquet of texts"])
def test_every_format_gives_the_same_rows(tmp_path, form):
    expected = read_annotation(write(tmp_path / "a.json", ENTRIES), "folder")
    if form == "jsonl":
        path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, ENTRIES)))
    elif form.startswith("csv"):
        path = as_csv(tmp_path / "a.csv", ENTRIES, repr if "pandas" in form else json.dumps, "flat" in form)
    else:
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        texts = [{**entry, "cap": json.dumps(entry["cap"]) if isinstance(entry["cap"], list) else entry["cap"]}
                 for entry in ENTRIES]  # a column has one type  # fmt: skip
        if "texts" in form:
            texts = [{key: value if isinstance(value, str) else json.dumps(value) for key, value in entry.items()}
                     for entry in texts]  # fmt: skip
        path = tmp_path / "a.parquet"
        parquet.write_table(arrow.Table.from_pylist([{"unrelated": [1], **entry} for entry in texts]), path)
    rows = read_annotation(path, "folder")
    assert rows == expected
    assert rows[1].captions == ("[a] caption [in brackets]",) and rows[2].captions == ("12",)


def test_gaps_of_a_table_are_missing(tmp_path):
    text = "path,cap,fps,num_frames,height,width,crop\nx.mp4,,nan,9.0,64,128,None\n"
    (row,) = read_annotation(write(tmp_path / "a.csv", text))
    assert (row.captions, row.fps, row.num_frames, row.height, row.width, row.crop) == ((), None, 9, 64, 128, None)


def test_parquet_without_its_package_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="a.parquet: .parquet needs the package pyarrow: pip install pyarrow"):
        read_annotation(write(tmp_path / "a.parquet", ""))


def test_relative_names_are_looked_for_in_the_working_directory_then_beside_the_list(tmp_path, monkeypatch):
    lists, work = tmp_path / "lists", tmp_path / "work"
    for folder in (lists / "videos", work / "videos"):
        folder.mkdir(parents=True)
        write(folder.parent / "rows.json", [{"path": f"of_{folder.parent.name}.mp4", "cap": "a"}])
    data = write(lists / "data.txt", "videos,rows.json\n")
    monkeypatch.chdir(work)
    assert [row.path for row in read_list(data)] == ["videos/of_work.mp4"]
    (work / "rows.json").unlink()
    (work / "videos").rmdir()
    assert [row.path for row in read_list(data)] == [f"{lists}/videos/of_lists.mp4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("only_a_folder\n", "data.txt:1: 'only_a_folder' is neither a folder nor `folder,annotation file`"),
        ("\n.,a.json,third\n", "data.txt:2: expected `folder,annotation file`, found 3 fields"),
        (".,missing.json\n", "data.txt:1: annotation file missing.json does not exist"),
        ("nowhere,good.json\n", "data.txt:1: folder nowhere does not exist"),
        ("\n", "data.txt: names no clips"),
    ],
)
def test_a_bad_list_is_an_error_with_file_and_line(tmp_path, content, message):
    write(tmp_path / "good.json", [{"path": "x.mp4", "cap": "a"}])
    with pytest.raises(DataError, match=re.escape(message)):
        read_list(write(tmp_path / "data.txt", content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"path": "x.mp4"},\n {"path": }]', "a.json:2: not valid JSON"),
        ("a.jsonl", '{"path": "x.mp4"}\n{"path"\n', "a.jsonl:2: not valid JSON"),
        ("a.json", "7", "a.json: expected an array of objects, found int"),
        (
            "a.json",
            {"version": 1},
            "a.json: expected an array of objects, or one under a key such as 'data'; found an object with the keys 'version'",
        ),
        (
            "a.json",
            [{"path": "x.mp4"}, {"url": "u"}],
            "a.json row 2: no key names the file; found 'url'; wanted one of 'path', 'file_name'",
        ),
        ("a.json", [{"path": 7}], "a.json row 1: key 'path' must be the name of a file, found 7"),
        ("a.json", [{"path": "a\0.mp4"}], "a.json row 1: path 'a\\x00.mp4' cannot be the name of a file"),
        (
            "a.jsonl",
            '{"path": "x.mp4"}\n{"path": "y.mp4", "num_frames": "nine"}',
            "a.jsonl:2: num_frames must be a number",
        ),
        ("a.json", [{"path": "x.mp4", "num_frames": 9.5}], "a.json row 1: num_frames must be a whole number"),
        ("a.json", [{"path": "x.mp4", "cap": {"en": "x"}}], "a.json row 1: cap must be a text or a list of texts"),
        ("a.json", [{"path": "x.mp4", "cut": [-3, 9]}], "a.json row 1: cut[0] is -3"),
        (
            "a.json",
            [{"path": "x.mp4", "resolution": "480p"}],
            "a.json row 1: resolution must be {height, width}, [height, width] or a text such as '1280x720'",
        ),
        ("a.pkl", "", "pandas.read_pickle"),
        ("a.parquat", "", "annotation files end in .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .tar"),
        ("a.csv", "", "a.csv:1: no key names the file (the first line names the columns); found no keys"),
        (
            "a.csv",
            "url,cap\n",
            "a.csv:1: no key names the file (the first line names the columns); found 'url', 'cap'; wanted one of 'path'",
        ),
        ("a.csv", "path,fps\nx.mp4,24\ny.mp4\n", "a.csv:3: expected 2 cells, as the first line has"),
        ("a.csv", "path,fps\nx.mp4,fast\n", "a.csv:2: fps must be a number, found 'fast'"),
        ("a.csv", 'path,cap\nx.mp4,"open\n', "a.csv:2: not valid CSV: unexpected end of data"),
        ("a.parquet", "no", "a.parquet: not a readable parquet file"),
    ],
)
def test_a_bad_annotation_is_an_error_with_file_and_row(tmp_path, name, content, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_annotation(write(tmp_path / name, content))


def test_a_missing_list_is_an_error_that_names_the_key(tmp_path):
    with pytest.raises(DataError, match="data.txt: no such file .*data_path"):
        read_list(tmp_path / "data.txt")
