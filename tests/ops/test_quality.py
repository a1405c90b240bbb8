"""PSNR and SSIM against values worked out by hand."""

import pytest
import torch

from mindspeed_mm.ops.quality import psnr, ssim


def random_videos(*shape) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_psnr_of_a_known_error():
    video = random_videos(2, 3, 5, 16, 16) * 0.5
    other = torch.stack((video[0] + 0.1, video[1] + 0.01))
    assert psnr(video, other).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_equal_videos_are_perfect():
    video = random_videos(2, 3, 4, 16, 16)
    assert psnr(video, video).tolist() == [100.0, 100.0]
    assert ssim(video, video).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_ssim_of_flat_pictures_compares_their_brightness():
    """Without variance, structure is 1 and luminance alone is left: (2ab + c1) / (a^2 + b^2 + c1), c1 = 1e-4."""
    a, b, c1 = 0.2, 0.6, 1e-4
    video, other = torch.full((1, 1, 1, 12, 12), a), torch.full((1, 1, 1, 12, 12), b)
    assert ssim(video, other).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-4)


def test_ssim_of_noise_that_was_smoothed_away():
    """Without covariance c2 / (variance + c2) is left, c2 = 9e-4; PSNR hardly sees it."""
    video = random_videos(1, 3, 2, 64, 64) * 0.2 + 0.4
    flat = torch.full_like(video, 0.5)
    assert ssim(video, flat).item() == pytest.approx(9e-4 / (0.2**2 / 12 + 9e-4), abs=0.02)
    assert psnr(video, flat).item() > 20


def test_ssim_refuses_frames_smaller_than_its_window():
    with pytest.raises(ValueError, match="11x11"):
        ssim(torch.zeros(1, 3, 1, 8, 8), torch.zeros(1, 3, 1, 8, 8))
