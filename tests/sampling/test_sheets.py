"""Grids against the original's pixels; contact sheets by what a reader finds in them."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindspeed_mm.sampling.sheets import contact_sheet, grid_picture, pick


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_grid_is_the_originals(golden, count):
    tensors = load_file(golden("infer/grid.safetensors"))
    videos, expected = tensors["videos"][:count], tensors[f"grid{count}"]
    found = np.stack([grid_picture(pictures) for pictures in videos.swapaxes(0, 1)])
    assert np.array_equal(found, expected)


def test_pictures_of_two_sizes_make_no_grid():
    with pytest.raises(ValueError, match=r"must have one size, found \[\(4, 6, 3\), \(8, 6, 3\)\]"):
        grid_picture([np.zeros((4, 6, 3), np.uint8), np.zeros((8, 6, 3), np.uint8)])


@pytest.mark.parametrize(
    ("count", "wanted", "found"),
    [(9, 3, [0, 4, 8]), (2, 6, [0, 1]), (1, 6, [0]), (121, 6, [0, 24, 48, 72, 96, 120]), (5, 1, [0])],
)
def test_frames_are_picked_from_first_to_last(count, wanted, found):
    assert pick(count, wanted) == found


def test_a_contact_sheet_has_a_row_per_video_and_its_frames_in_order():
    red = np.zeros((9, 32, 64, 3), np.uint8)
    red[..., 0] = np.linspace(100, 250, 9).astype(np.uint8)[:, None, None]
    blue = np.full((1, 64, 64, 3), (0, 0, 200), np.uint8)
    sheet = contact_sheet([red, blue], ["red getting brighter", "a blue picture"], columns=3, thumbnail_width=64)
    assert sheet.shape == ((20 + 32 + 4) + (20 + 64 + 4) + 4, 3 * 68 + 4, 3)
    assert [sheet[20 + 16, 4 + 68 * column + 32, 0] for column in range(3)] == [100, 175, 250]
    row = sheet[56 + 20 + 32]
    assert tuple(row[36]) == (0, 0, 200)
    assert np.array_equal(row[68 + 36], row[2 * 68 + 36])  # paper: the picture has one frame
    label = sheet[:20].max(axis=2)
    assert label.max() > 200 and (label > 100).mean() > 0.01  # some ink
