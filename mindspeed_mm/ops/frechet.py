"""Distance between two sets of features as between two normal distributions (Fréchet; FVD: Unterthiner et al. 1812.01717)."""

import torch
from torch import Tensor


def frechet_distance(features: Tensor, other: Tensor) -> float:
    """|m - n|^2 + tr(A + B - 2 (A B)^(1/2)) with the means and covariances of features [N,D] and other [M,D].

    Computed in fp64. With fewer samples than dimensions the covariance is of low rank and the distance is too large;
    compare only distances of equal N and M. Raises ValueError for fewer than two samples.
    """
    if min(len(features), len(other)) < 2:
        raise ValueError(f"{len(features)} and {len(other)} samples: a covariance needs two")
    mean, covariance = _moments(features)
    other_mean, other_covariance = _moments(other)
    root = _root(covariance)
    # the eigenvalues of A B are those of A^(1/2) B A^(1/2), which is symmetric
    cross = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross
    return max(0.0, distance.item())  # rounding


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _root(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
