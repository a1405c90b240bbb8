"""Haar transforms against the original's numbers, against a plain twin, and their properties."""

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_mm.ops import haar


def random_video(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def forward_3d_plain(video):
    """Sums and differences written out: one axis after the other, time first."""
    bands = [torch.cat((video[:, :, :1], video), dim=2)]
    for axis in (2, 3, 4):
        pairs = [(band.unfold(axis, 2, 2).select(-1, 0), band.unfold(axis, 2, 2).select(-1, 1)) for band in bands]
        bands = [combined for a, b in pairs for combined in (a + b, a - b)]
    return torch.cat(bands, dim=1) * 0.3536


@pytest.mark.parametrize("case", ["haar3d", "haar3d_evenT", "haar3d_T1"])
def test_3d_transform_and_inverse_equal_the_original(golden, case):
    numbers = load_file(golden("vae/wavelets.safetensors"))
    bands = haar.forward_3d(numbers[f"{case}.in"], haar.kernels_3d())
    torch.testing.assert_close(bands, numbers[f"{case}.coeffs"], atol=1e-6, rtol=0)
    video = haar.inverse_3d(numbers[f"{case}.coeffs"], haar.kernels_3d())
    torch.testing.assert_close(video, numbers[f"{case}.inverse"], atol=1e-6, rtol=0)


def test_2d_transform_and_inverse_equal_the_original(golden):
    numbers = load_file(golden("vae/wavelets.safetensors"))
    bands = haar.forward_2d(numbers["haar2d.in"], haar.kernels_2d())
    torch.testing.assert_close(bands, numbers["haar2d.coeffs"], atol=1e-6, rtol=0)
    video = haar.inverse_2d(bands, haar.kernels_2d())
    torch.testing.assert_close(video, numbers["haar2d.inverse"], atol=1e-6, rtol=0)


def test_inverses_of_arbitrary_bands_equal_the_original(golden):
    numbers = load_file(golden("vae/wavelets.safetensors"))
    video = haar.inverse_3d(numbers["ihaar3d.in"], haar.kernels_3d())
    torch.testing.assert_close(video, numbers["ihaar3d.out"], atol=1e-6, rtol=0)
    video = haar.inverse_2d(numbers["ihaar2d.in"], haar.kernels_2d())
    torch.testing.assert_close(video, numbers["ihaar2d.out"], atol=1e-6, rtol=0)


def test_3d_transform_equals_its_plain_twin():
    video = random_video(2, 3, 5, 8, 6)
    torch.testing.assert_close(haar.forward_3d(video, haar.kernels_3d()), forward_3d_plain(video), atol=1e-6, rtol=0)


def test_3d_round_trip_scales_by_the_released_kernels():
    video = random_video(2, 3, 9, 8, 6)
    back = haar.inverse_3d(haar.forward_3d(video, haar.kernels_3d()), haar.kernels_3d())
    torch.testing.assert_close(back, video * (8 * 0.3536**2), atol=2e-6, rtol=0)


def test_2d_round_trip_is_exact():
    video = random_video(2, 3, 4, 8, 6)
    back = haar.inverse_2d(haar.forward_2d(video, haar.kernels_2d()), haar.kernels_2d())
    torch.testing.assert_close(back, video, atol=1e-6, rtol=0)


@pytest.mark.parametrize("build", [haar.kernels_3d, haar.kernels_2d])
def test_kernels_are_orthogonal(build):
    rows = build().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=3e-4, rtol=0)


def test_3d_in_pieces_equals_whole():
    video, kernels = random_video(1, 3, 9, 8, 6), haar.kernels_3d()
    bands = haar.forward_3d(video, kernels)
    pieces = [haar.forward_3d(video[:, :, a:b], kernels, first=a == 0) for a, b in ((0, 1), (1, 5), (5, 9))]
    assert [piece.shape[2] for piece in pieces] == [1, 2, 2]
    assert torch.equal(torch.cat(pieces, dim=2), bands)
    frames = [haar.inverse_3d(piece, kernels, first=i == 0) for i, piece in enumerate(pieces)]
    assert [piece.shape[2] for piece in frames] == [1, 4, 4]
    torch.testing.assert_close(torch.cat(frames, dim=2), haar.inverse_3d(bands, kernels), atol=1e-6, rtol=0)


def test_kernels_given_are_the_kernels_used():
    video = random_video(1, 2, 3, 4, 4)
    torch.testing.assert_close(
        haar.forward_3d(video, 2 * haar.kernels_3d()), 2 * haar.forward_3d(video, haar.kernels_3d())
    )
    bands = random_video(1, 8, 3, 4, 4)
    torch.testing.assert_close(
        haar.inverse_2d(bands, 2 * haar.kernels_2d()), 2 * haar.inverse_2d(bands, haar.kernels_2d())
    )


def test_gradients_pass_through_both_ways():
    video = random_video(1, 2, 3, 4, 4).double().requires_grad_()
    kernels = haar.kernels_3d().double()
    assert torch.autograd.gradcheck(lambda x: haar.inverse_3d(haar.forward_3d(x, kernels), kernels), video)
