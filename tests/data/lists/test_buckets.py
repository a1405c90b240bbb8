"""Aspect buckets: few shapes, little cut away, and samples of the promised size."""

import dataclasses
import random

import pytest
from data_helpers import MULTI, STEPS, data_config, row, write_clip, write_list

from mindspeed_mm.data.feed.video import VideoSource
from mindspeed_mm.data.lists.buckets import choose_buckets, nearest
from mindspeed_mm.data.lists.filters import filter_rows
from mindspeed_mm.data.lists.sources import read_list
from mindspeed_mm.errors import ConfigError


def test_buckets_are_few_and_lie_where_the_clips_are():
    draw = random.Random(0)
    wide = [(480, 854 + draw.randrange(-20, 20)) for _ in range(30)]
    tall = [(854 + draw.randrange(-20, 20), 480) for _ in range(10)]
    found = choose_buckets(wide + tall, 2, 400_000, 16)
    assert found == choose_buckets(tall + wide[::-1], 2, 400_000, 16)
    (high, low), (flat, long) = found
    assert high / low == pytest.approx(854 / 480, rel=0.05) and long / flat == pytest.approx(854 / 480, rel=0.05)
    for height, width in found:
        assert height % 16 == width % 16 == 0 and 350_000 < height * width <= 400_000
    assert nearest(720, 1280, found) == (flat, long)
    assert len(choose_buckets(wide + tall, 1, 400_000, 16)) == 1
    assert choose_buckets([], 3, 400_000, 16) == ()


@pytest.mark.parametrize("size", [(1, 1), (8, 4000), (4000, 8), (17, 33)])
def test_odd_sizes_have_a_bucket(size):
    ((height, width),) = choose_buckets([size], 3, 4096, 16)
    assert height >= 16 and width >= 16 and not height % 16 and not width % 16


def test_samples_have_the_size_of_their_bucket(tmp_path):
    sizes = [(64, 128), (64, 120), (66, 126), (128, 64), (120, 64)]
    for number, (height, width) in enumerate(sizes):
        write_clip(tmp_path / f"{number}.mp4", 9, height, width)
    rows = [row(f"{number}.mp4", height=height, width=width) for number, (height, width) in enumerate(sizes)]
    options = {**MULTI, "train_pipeline": {"video": STEPS, "image": STEPS}}
    listed = read_list(write_list(tmp_path, rows))

    def clips(count):
        config = data_config("x", {**options, "auto_buckets": count}).dataset_param.preprocess_parameters
        return config, filter_rows(listed, config, None).clips

    _, apart = clips(0)
    config, found = clips(2)
    assert len({clip.key for clip in apart}) > 2 and len({clip.key for clip in found}) == 2
    source = VideoSource(config)
    source.check(found)
    for clip in found:
        video = source.load(clip, random.Random(0))
        assert video.shape == (3, 9, clip.height, clip.width) and -1.3 < video.min() < video.max() < 1.3
    unfit = dataclasses.replace(found[0], height=32)
    with pytest.raises(ConfigError, match="but preprocess_parameters ask for 32x"):
        source.check([unfit])


@pytest.mark.parametrize("name", ["force_resolution", "force_5_ratio"])
def test_buckets_exclude_other_rules_of_the_size(name):
    with pytest.raises(ConfigError, match=f"auto_buckets.* 3: excludes {name} true"):
        data_config("x", {**MULTI, "auto_buckets": 3, name: True})
