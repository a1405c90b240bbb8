"""Frame selection: pure functions of numbers, against the original's indices where it is right."""

import json
import random

import numpy as np
import pytest

from mindspeed_mm.config.data import PreprocessConfig
from mindspeed_mm.data.decode import frames
from mindspeed_mm.errors import DataError


def settings(**values) -> PreprocessConfig:
    # the defaults of the golden cases
    return PreprocessConfig(**{"num_frames": 121, "max_hxw": 589824, "min_num_frames": 29, "train_fps": 24.0, **values})


def candidates_of(case, config):
    resampled = frames.candidates(case["start_frame_idx"], case["clip_total_frames"], case["fps"], config.train_fps)
    return frames.speed_up(resampled, config.num_frames, config.speed_factor)


def select(case, config, seed=0):
    values = case["start_frame_idx"], case["clip_total_frames"], case["fps"]
    return frames.select(*values, config, random.Random(seed)).tolist()


def test_closest_lengths_equal_the_golden_numbers(golden):
    for case in json.loads(golden("data/find_closest_y.json").read_text()):
        rule = case["min_num_frames"], case["ae_stride_t"], case["sp_size"]
        assert [frames.closest_length(length, *rule) for length in range(len(case["y"]))] == case["y"]


def test_indices_equal_the_golden_numbers_or_are_another_window_of_them(golden):
    cases = [case for case in json.loads(golden("data/frame_indices.json").read_text()) if "error" not in case]
    exact = 0
    for case in cases:
        config = settings(**case["params"])
        used, ours = candidates_of(case, config).tolist(), select(case, config)
        if len(used) <= config.num_frames:
            assert ours == case["frame_indices"], case
            exact += 1
        else:  # cropped in time at random: ours may start one later than the original's ever did
            windows = [used[begin : begin + len(ours)] for begin in range(len(used) - len(ours) + 1)]
            assert ours in windows and case["frame_indices"] in windows
            assert len(ours) == case["predefined_len"]
    assert (exact, len(cases)) == (4, 19)


def test_what_the_original_refuses(golden):
    cases = [case for case in json.loads(golden("data/frame_indices.json").read_text()) if "error" in case]
    assert len(cases) == 4
    for case in cases:
        config = settings(**case["params"])
        if case["error"] == "IndexError":  # too short
            with pytest.raises(DataError, match="frames at 24 fps; need"):
                select(case, config)
        elif case["params"].get("speed_factor"):  # one frame short by rounding: a defect, mended
            assert len(select(case, config)) == case["predefined_len"]
        else:  # not the length that the filter found; ClipDataset compares the two
            assert len(select(case, config)) == 97 != case["predefined_len"]


def test_speed_up_never_leaves_a_long_clip_short():
    config = settings(speed_factor=1.5, too_long_factor=1e9)
    for length in range(121, 1000):
        assert frames.selected_length(0, length, 24.0, config) == (length, 121)
        assert len(frames.speed_up(np.arange(length), 121, 1.5)) >= 121


def test_every_start_of_the_temporal_crop_is_drawn_the_last_one_too():
    config = settings(num_frames=9, min_num_frames=9)
    starts = [int(frames.select(5, 12, 24.0, config, random.Random(seed))[0]) for seed in range(400)]
    counts = np.bincount(starts, minlength=9)[5:9]
    assert counts.sum() == 400 and counts.min() > 60


def test_the_filter_promises_the_length_that_is_selected():
    draw = random.Random(1)
    for _ in range(500):
        config = settings(
            num_frames=draw.choice([9, 17, 33]),
            min_num_frames=draw.choice([1, 5, 9]),
            ae_stride_t=draw.choice([4, 8]),
            speed_factor=draw.choice([1.0, 1.5, 3.0]),
            frame_interval=draw.choice([1, 2]),
            drop_short_ratio=0.0,
        )
        clip = draw.randint(0, 50), draw.randint(1, 200), draw.choice([24, 25, 29.97, 30, 60])
        promised = frames.selected_length(*clip, config)[1]
        if promised < 0:
            with pytest.raises(DataError):
                frames.select(*clip, config, draw)
        else:
            indices = frames.select(*clip, config, draw)
            assert len(indices) == promised
            assert indices.min() >= clip[0] and indices.max() < clip[0] + clip[1]


def test_rounding_of_arange_in_float64_is_part_of_the_rule():
    # 30 fps at 25: start + 1.2 k would give 16 at k = 5
    assert frames.candidates(10, 20, 30.0, 25.0)[5] == 15
    assert frames.candidates(0, 20, 30.0, 25.0)[5] == 6
