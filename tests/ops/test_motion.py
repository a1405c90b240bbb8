"""The optical flow finds movements that are known, and none where nothing moves."""

import pytest
import torch
import torch.nn.functional as F

from mindspeed_mm.ops import motion


@pytest.fixture(scope="module")
def picture():
    """Brightness [160,160] of soft spots."""
    spots = torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    return torch.sigmoid(F.interpolate(spots, (160, 160), mode="bicubic"))[0, 0]


@pytest.mark.parametrize("down, across", [(0, 0), (0, 1), (-2, 3), (8, -5), (0, 16)])
def test_a_shifted_picture_moves_by_the_shift(picture, down, across):
    frames = torch.stack([picture[20 - n * down :, 20 - n * across :][:96, :96] for n in (0, 1)])
    found = motion.flow(frames)
    assert found.shape == (1, 2, 96, 96)
    inside = found[0, :, 20:-20, 20:-20]
    assert inside[0].median() == pytest.approx(across, abs=0.05)
    assert inside[1].median() == pytest.approx(down, abs=0.05)


def test_parts_of_a_pixel_are_found(picture):
    rows = F.affine_grid(torch.tensor([[[1.0, 0, -2 * 0.4 / 95], [0, 1, 0]]]), (1, 1, 96, 96), align_corners=True)
    moved = F.grid_sample(picture[None, None, :96, :96], rows, align_corners=True)[0, 0]
    found = motion.flow(torch.stack((picture[:96, :96], moved)))[0, 0, 20:-20, 20:-20]
    assert found.median() == pytest.approx(0.4, abs=0.05)


def test_weak_noise_does_not_move():
    noise = 0.5 + 0.004 * torch.randn(2, 48, 48, generator=torch.Generator().manual_seed(1))  # a level of uint8
    assert motion.flow(noise).norm(dim=1).mean() < 0.05


def test_odd_and_small_sizes_pass():
    assert motion.flow(torch.rand(3, 37, 51)).shape == (2, 2, 37, 51)
    assert motion.flow(torch.rand(2, 5, 7)).shape == (1, 2, 5, 7)
