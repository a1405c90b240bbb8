"""The row filter against the original's decisions."""

import json
import time

import pytest
from data_helpers import row

from mindspeed_mm.config.data import PreprocessConfig
from mindspeed_mm.data.lists.filters import common_shapes, filter_rows
from mindspeed_mm.data.lists.sources import read_annotation
from mindspeed_mm.errors import DataError
from mindspeed_mm.schema import build, node_from_python


def preprocess(**values) -> PreprocessConfig:
    return build(PreprocessConfig, node_from_python(values, "preprocess_parameters"))


def rows_of(tmp_path, entries, folder="/r"):
    (tmp_path / "rows.json").write_text(json.dumps(entries))
    return read_annotation(tmp_path / "rows.json", folder)


@pytest.fixture(scope="module")
def original(golden):
    return json.loads(golden("data/define_frame_index.json").read_text())


@pytest.fixture
def rows(original, tmp_path):
    videos = rows_of(tmp_path, original["videos_json"], "/data/root")
    return videos + rows_of(tmp_path, original["images_json"], "/data/root2")


@pytest.mark.parametrize("number", range(3), ids=["A_v1_5", "B_multires", "C_5ratio"])
def test_rows_sizes_lengths_and_reasons_equal_the_golden_ones(original, rows, number):
    case = original["configs"][number]
    result = filter_rows(rows, preprocess(**case["preprocess_parameters"]), None)
    kept = {clip.row.path: clip for clip in result.clips}
    assert [clip.key for clip in result.clips] == case["lengths"]
    reasons: dict[str, list[str]] = {}
    for entry, expected in zip(rows, case["rows"], strict=True):
        assert entry.path == expected["path"] and (entry.path in kept) == expected["kept"], expected
        if not expected["kept"]:
            reasons.setdefault(expected["reason"], []).append(entry.path)
            continue
        clip = kept[entry.path]
        assert clip.key == expected["key"]
        assert (clip.height, clip.width) == (expected["sample_height"], expected["sample_width"])
        assert clip.frames == expected["sample_num_frames"] == len(expected["sample_frame_index"])
        assert entry.start == (expected["start_frame_idx"] or 0)
    assert {item.rule: (item.count, item.examples) for item in result.dropped} == {
        rule: (len(paths), tuple(paths[:3])) for rule, paths in reasons.items()
    }
    assert result.total == 36


@pytest.mark.parametrize("number", range(3))
def test_rare_shapes_are_dropped_as_in_the_golden_lists(original, rows, number):
    case = original["configs"][number]
    expected = case["minority_filter"]
    result = filter_rows(rows, preprocess(**case["preprocess_parameters"]), expected["global_batch_size"])
    assert [clip.row.path for clip in result.clips] == expected["kept_paths"]
    assert [clip.key for clip in result.clips] == expected["lengths"]
    (rare,) = [item for item in result.dropped if item.rule == "rare_shape"]
    assert rare.count == len(case["lengths"]) - len(expected["kept_paths"])


def test_the_promised_size_follows_hw_stride(tmp_path):
    # the original uses stride 16 in the first step whatever hw_stride says: 416x576, which no transform made
    rows = rows_of(tmp_path, [row("a.mp4", height=480, width=640)])
    config = {"num_frames": 9, "min_num_frames": 9, "force_resolution": False, "force_5_ratio": True}
    for stride, key in ((16, "9x432x576"), (32, "9x384x512")):
        (clip,) = filter_rows(rows, preprocess(**config, max_hxw=262144, hw_stride=stride), None).clips
        assert clip.key == key


V1_5 = {
    "num_frames": 121,
    "max_height": 576,
    "max_width": 1024,
    "min_hxw": 589824,
    "max_h_div_w_ratio": 1.0,
    "min_h_div_w_ratio": 0.42,
}
BIG = {"height": 576, "width": 1024, "num_frames": 121, "cap": "a cat"}
SMALL_SIZE = {"max_height": 32, "max_width": 64, "min_hxw": 1, "num_frames": 9, "min_num_frames": 9}


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("homogeneous", [row("a.mp4", **BIG), row("b.mp4", **BIG)]),
        ("one row cap null", [row("a.mp4", **BIG), row("b.mp4", **{**BIG, "cap": None})]),
        (
            "mixed video + image in one json file",
            [row("a.mp4", **BIG), without(row("i.jpg", **{**BIG, "cap": "a photo"}), "num_frames")],
        ),
        ("no row has cut", [row("a.mp4", **BIG)]),
        ("no row has fps", [without(row("a.mp4", **BIG), "fps")]),
        ("list captions", [row("a.mp4", **{**BIG, "cap": ["x", "y"]})]),
    ],
)
def test_edge_cases_that_the_original_reads_right(golden, tmp_path, name, entries):
    expected = json.loads(golden("data/json_edge_cases.json").read_text())["cases"][name]
    clips = filter_rows(rows_of(tmp_path, entries), preprocess(**V1_5), None).clips
    found = [[clip.row.path, clip.key, list(clip.row.captions)] for clip in clips]
    assert found == [[path, key, cap if isinstance(cap, list) else [cap]] for path, key, cap in expected]


def test_gaps_that_stop_the_original_drop_the_row_alone(tmp_path):
    entries = [
        row("good.MP4", **BIG),
        row("cut.mov", cut=[5, 126], **BIG),
        without(row("no_fps.mkv", **BIG), "fps"),
        without(row("no_cap.mp4", **BIG), "cap"),
        without(row("no_resolution.mp4", **BIG), "resolution"),
        without(row("no_length.mp4", **BIG), "num_frames"),
        row("text.txt", **BIG),
        {**row("no_rate.mp4", **BIG), "fps": 0},
    ]
    result = filter_rows(rows_of(tmp_path, entries), preprocess(**V1_5), None)
    assert [clip.row.path for clip in result.clips] == ["/r/good.MP4", "/r/cut.mov", "/r/no_fps.mkv"]
    assert {item.rule: item.examples for item in result.dropped} == {
        "no_cap": ("/r/no_cap.mp4",),
        "no_resolution": ("/r/no_resolution.mp4",),
        "no_num_frames": ("/r/no_length.mp4",),
        "unknown_type": ("/r/text.txt",),
        "bad_fps": ("/r/no_rate.mp4",),
    }
    assert "data: 1 videos state no fps; 24 is assumed" in result.lines()


def test_the_report_says_rule_count_examples_and_shapes(tmp_path):
    entries = [row(f"{n}.mp4") for n in range(4)] + [row(f"short{n}.mp4", num_frames=3) for n in range(5)]
    lines = filter_rows(rows_of(tmp_path, entries), preprocess(**SMALL_SIZE), 1).lines()
    assert lines == [
        "data: 4 of 9 rows are used",
        "data: dropped by rule too_short 5 (/r/short0.mp4, /r/short1.mp4, /r/short2.mp4, ...)",
        "data: clips by shape 9x32x64=4",
    ]


def test_a_list_of_which_nothing_is_left_is_one_line_with_rules_and_counts(tmp_path):
    entries = [row("a.mp4", num_frames=3), row("b.mp4", num_frames=4), row("c.mp4", num_frames=9999)]
    with pytest.raises(DataError) as caught:
        filter_rows(rows_of(tmp_path, entries), preprocess(**SMALL_SIZE), 1, "data.txt")
    assert str(caught.value) == (
        "data.txt: none of 3 rows can be used: too_short 2 (/r/a.mp4, /r/b.mp4); too_long 1 (/r/c.mp4). "
        "preprocess_parameters ask for 9 frames at 24 fps and at least 1 pixels"
    )


def test_too_few_clips_of_every_shape_says_how_many_are_needed(tmp_path):
    with pytest.raises(DataError, match=r"rare_shape 3 .*asks for 4 clips of one shape \(--global-batch-size\)"):
        filter_rows(rows_of(tmp_path, [row(f"{n}.mp4") for n in range(3)]), preprocess(**SMALL_SIZE), 4)


def test_a_list_of_two_clips_is_enough_for_a_step(tmp_path):
    rows = rows_of(tmp_path, [row("a.mp4"), row("b.mp4")])
    assert len(filter_rows(rows, preprocess(**SMALL_SIZE), 1).clips) == 2
    assert common_shapes({"a": 8, "b": 7}, 2) == {"a": 8}  # as in the original, where a shape has enough
    assert common_shapes({"a": 7, "b": 2, "c": 1}, 2) == {"a": 7, "b": 2}


def test_the_real_clips_are_enough_for_a_batch_of_one(clips):
    rows = read_annotation(clips / "annotations.json", clips)
    # 8 fps is the lowest rate among them; at 8.05 (within 0.1 of it) 30 frames at 30 fps are 9 and not 8
    sizes = {"num_frames": 9, "min_num_frames": 9, "max_height": 64, "max_width": 64, "min_hxw": 4096}
    result = filter_rows(rows, preprocess(**sizes, train_fps=8.05, too_long_factor=12), 1)
    assert [clip.key for clip in result.clips] == ["9x64x64"] * 6 and result.dropped == ()
    dropped = filter_rows(rows, preprocess(**sizes, train_fps=8, too_long_factor=12), 1).dropped
    assert {item.rule: item.count for item in dropped} == {"too_short": 2}
    with pytest.raises(DataError, match="none of 6 rows can be used: too_long 4 .*; too_short 2"):
        filter_rows(rows, preprocess(**sizes, train_fps=8), 1)


def test_ten_thousand_rows_take_seconds(rows, original):
    config = preprocess(**original["configs"][1]["preprocess_parameters"])
    many = rows * 278
    begin = time.process_time()
    result = filter_rows(many, config, 1)
    assert result.total == len(many) > 10_000
    assert time.process_time() - begin < 5
