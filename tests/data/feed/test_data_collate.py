"""Batches against the original's shapes and masks."""

import json

import pytest
import torch

from mindspeed_mm.data.feed.collate import collate
from mindspeed_mm.data.feed.samples import Sample
from mindspeed_mm.errors import DataError
from mindspeed_mm.types import TokenIds

# grouped items of different shapes: the original silently repeats the items of the most frequent one
MIXED = {"bs4 grouped mixed majority", "bs2 grouped tie"}
REFUSED = {"bs1 h not multiple of 16 (40)"}


def sample(shape, fill, second=True) -> Sample:
    ids = torch.full((1, 6), int(fill)), torch.arange(6)[None] < 3
    ids_2 = torch.full((1, 4), int(fill)), torch.arange(4)[None] < 2
    key = "x".join(map(str, shape[1:]))
    video = torch.full(tuple(shape), float(fill))
    return Sample(video, TokenIds(*ids), TokenIds(*ids_2) if second else None, "", f"{fill}.mp4", key)


def run(case):
    param = case["collate_param"]
    grouped = param["group_data"] or param["batch_size"] == 1
    target = None if grouped else (param["num_frames"], param["max_height"], param["max_width"])
    second = "no tokenizer_2" not in case["name"]
    return collate(
        [sample(item["shape"], item["fill"], second) for item in case["items"]],
        [(0, place) for place in range(len(case["items"]))],
        strides=(param["ae_stride_t"], param["ae_stride"], param["ae_stride"]),
        patch_size=param["patch_size"],
        patch_size_t=param["patch_size_t"],
        target=target,
    )


@pytest.fixture(scope="module")
def cases(golden):
    return {case["name"]: case for case in json.loads(golden("data/collate.json").read_text())}


def extent(block):
    """Extent [t,h,w] of the leading block of non-zeros."""
    return [int(block.nonzero()[:, axis].max()) + 1 for axis in range(3)]


def test_shapes_masks_and_padding_equal_the_golden_ones(cases):
    right = [case for name, case in cases.items() if "error" not in case and name not in MIXED]
    assert len(right) == 10
    for case in right:
        batch, expected = run(case), case["out"]
        assert list(batch.video.shape) == expected["video"]["shape"], case["name"]
        assert batch.video.dtype == torch.float32 and batch.keep.dtype == torch.bool
        assert list(batch.keep.shape) == expected["video_mask"]["shape"], case["name"]
        assert batch.keep.sum((1, 2, 3)).tolist() == case["mask_sum"]
        assert [extent(keep) for keep in batch.keep] == case["mask_ones_extent_thw"]
        assert [extent(video[0]) for video in batch.video] == case["video_nonzero_extent_thw"]
        assert batch.video[:, 0, 0, 0, 0].tolist() == case["video_first_value_per_item"]
        for tokens, key in ((batch.text, "prompt_ids"), (batch.pooled_text, "prompt_ids_2")):
            if expected[key] is None:
                assert tokens is None
            else:  # [B,L] here, [B,1,L] there
                count, _, length = expected[key]["shape"]
                assert tokens.ids.shape == tokens.keep.shape == (count, length)
        assert batch.text.ids[:, 0].tolist() == case["prompt_ids_first"]
        assert batch.paths == tuple(f"{item['fill']}.mp4" for item in case["items"])


def test_grouped_items_of_different_shapes_are_refused(cases):
    for name in MIXED:
        with pytest.raises(DataError, match="different shapes: 1.0.mp4 9x32x48, 2.0.mp4 17x32x48"):
            run(cases[name])


def test_grouped_items_that_leave_latents_empty_are_refused_with_the_multiple(cases):
    for name in REFUSED:
        with pytest.raises(DataError, match="1.0.mp4: a sample of 9x40x64 .* must be multiples of 16 and 16"):
            run(cases[name])


def test_a_batch_of_two_holds_two_items():
    samples = [sample((3, 9, 32, 32), 1), sample((3, 9, 32, 32), 2)]
    batch = collate(samples, [(4, 7), (4, 2)], strides=(8, 8, 8), patch_size=2)
    assert batch.addresses == ((4, 7), (4, 2))
    assert batch.video[:, 0, 0, 0, 0].tolist() == [1, 2]
    assert batch.text.ids[:, 0].tolist() == batch.pooled_text.ids[:, 0].tolist() == [1, 2]
