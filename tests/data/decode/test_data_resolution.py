"""Sizes after resizing and cropping."""

import json

import pytest

from mindspeed_mm.data.decode.resolution import center_crop_box, fit_pixels, nearest_ratio, stride_crop


def test_resize_and_stride_crop_equal_the_golden_numbers(golden):
    cases = json.loads(golden("data/transforms.json").read_text())["maxhwresize_get_params"]
    assert len(cases) == 88
    for case in cases:
        size = fit_pixels(case["h"], case["w"], case["max_hxw"], case["force_5_ratio"], 16)
        assert list(size) == case["resized"], case
        assert list(stride_crop(*size, 16, case["force_5_ratio"])) == case["crop_i_j_h_w_stride16"], case
        assert list(stride_crop(*size, 32, case["force_5_ratio"])) == case["crop_stride32"], case


def test_center_crop_boxes_equal_the_golden_numbers(golden):
    cases = json.loads(golden("data/transforms.json").read_text())["center_crop_boxes"]
    assert len(cases) == 18
    for case in cases:
        box = center_crop_box(case["h"], case["w"], case["th"], case["tw"], case["top_crop"])
        assert box == (case["i"], case["j"], case["crop_h"], case["crop_w"]), case


@pytest.mark.parametrize(("size", "ratio"), [((1080, 1920), (9, 16)), ((500, 500), (1, 1)), ((1600, 1000), (16, 9))])
def test_nearest_of_five_ratios(size, ratio):
    assert nearest_ratio(*size) == ratio


def test_stride_decides_the_box_of_five_ratios():
    # the original's filter used stride 16 here whatever hw_stride said, and promised 416x576
    assert stride_crop(*fit_pixels(480, 640, 262144, True, 32), 32, True)[2:] == (384, 512)
    assert stride_crop(*fit_pixels(480, 640, 262144, True, 16), 32, True)[2:] == (416, 576)
