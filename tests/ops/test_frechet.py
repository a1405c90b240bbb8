"""The Fréchet distance equals the formula where it can be computed by hand."""

import pytest
import torch

from mindspeed_mm.ops.frechet import frechet_distance


def normal(count, mean, deviations, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, len(deviations), generator=generator, dtype=torch.float64)
    values = (values - values.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(values.T.cov())).T  # exact moments
    return values * torch.tensor(deviations, dtype=torch.float64) + torch.tensor(mean, dtype=torch.float64)


def test_of_distributions_with_known_moments():
    """Along common axes it is |m - n|^2 + sum of (s - t)^2."""
    one, other = normal(50, [0.0, 1.0], [1.0, 2.0], 0), normal(70, [3.0, 1.0], [2.0, 0.5], 1)
    assert frechet_distance(one, other) == pytest.approx(9 + 1 + 2.25, abs=1e-6)
    assert frechet_distance(other, one) == pytest.approx(9 + 1 + 2.25, abs=1e-6)


def test_turned_axes_leave_it(seed=3):
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    one = normal(40, [0.0] * 4, [1.0, 2, 3, 0.1], 4)
    other = normal(40, [1.0] * 4, [2.0, 1, 1, 1], 5)
    assert frechet_distance(one @ turn, other @ turn) == pytest.approx(frechet_distance(one, other), abs=1e-6)


def test_equal_sets_and_too_few():
    one = torch.randn(3, 8)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="1 and 3 samples"):
        frechet_distance(one[:1], one)
