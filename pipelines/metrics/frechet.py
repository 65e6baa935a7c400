"""Frechet distance between two sets of features, from statistics gathered piece by piece.

With I3D features of clips it is FVD, with Inception features of frames FID (Blattmann et al. 2023, appendix G).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

Features = Float[Tensor, "n d"]
"""One row of features per clip or frame."""

OtherFeatures = Float[Tensor, "m features"]
"""A second set; that it has as many features is checked by the functions."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Count, mean and scatter of features, in float64: all that the distance needs, and mergeable across workers.

    Attributes:
        count: number of rows seen.
        mean: their mean.
        scatter: sum of outer products of their deviations from the mean.
    """

    count: int
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, "d d"]

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Unbiased covariance.

        Raises:
            ValueError: If there are fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"covariance of {self.count} rows of features; gather 2 or more")
        return self.scatter / (self.count - 1)

    @property
    def has_full_rank(self) -> bool:
        """Whether there are more rows than features; if not, the distance is biased upwards, see `polynomial_mmd`."""
        return self.count > len(self.mean)


def gather_statistics(features: Features) -> FeatureStatistics:
    """Statistics of some rows.

    Raises:
        ValueError: If there is no row, or a feature is not finite.
    """
    if len(features) == 0:
        raise ValueError("no rows of features; give 1 or more")
    exact = features.detach().to(device="cpu", dtype=torch.float64)
    if not torch.isfinite(exact).all():
        bad = int((~torch.isfinite(exact)).any(dim=1).sum())
        raise ValueError(
            f"{bad} of {len(exact)} rows of features are not finite; leave those samples out and count them"
        )
    mean = exact.mean(dim=0)
    deviations = exact - mean
    return FeatureStatistics(count=len(exact), mean=mean, scatter=deviations.T @ deviations)


def merge_statistics(parts: Iterable[FeatureStatistics]) -> FeatureStatistics:
    """Statistics of all rows from those of disjoint parts, without the cancellation of summed squares.

    Raises:
        ValueError: If there is no part, or parts differ in their number of features.

    Source: Chan, Golub and LeVeque 1979, equations 2.1.
    """
    several = list(parts)
    if not several:
        raise ValueError("no statistics to merge; give 1 or more parts")
    return reduce(_merge, several)


def _merge(one: FeatureStatistics, other: FeatureStatistics) -> FeatureStatistics:
    if len(one.mean) != len(other.mean):
        raise ValueError(f"statistics of {len(one.mean)} and of {len(other.mean)} features; use one feature extractor")
    count = one.count + other.count
    apart = other.mean - one.mean
    scatter = one.scatter + other.scatter + torch.outer(apart, apart) * (one.count * other.count / count)
    return FeatureStatistics(count=count, mean=one.mean + apart * (other.count / count), scatter=scatter)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """|mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)): the squared 2-Wasserstein distance of two Gaussians.

    With C = F F^T from the eigenvalues of C, the trace of the root is the sum of singular values of F_1^T F_2. No root
    of the non-symmetric, nearly singular product is taken, so fewer rows than features do no harm to the arithmetic.

    Raises:
        ValueError: If either has fewer than two rows, or they differ in their number of features.

    Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6; Unterthiner et al. 2018 for video.
    """
    if len(one.mean) != len(other.mean):
        raise ValueError(f"statistics of {len(one.mean)} and of {len(other.mean)} features; use one feature extractor")
    trace_of_root = torch.linalg.svdvals(_factor(one.covariance).T @ _factor(other.covariance)).sum()
    traces = one.covariance.trace() + other.covariance.trace()
    distance = (one.mean - other.mean).square().sum() + traces - 2 * trace_of_root
    return max(distance.item(), 0.0)


def distance_between(one: Features, other: OtherFeatures) -> float:
    """Frechet distance of two sets of rows held in memory: for few rows far faster than by their covariances.

    With centred rows X (n d) and Y (m d), C_1 = X^T X / (n - 1), and the trace of the root is the sum of singular
    values of X Y^T / sqrt((n - 1) (m - 1)), a matrix of n m numbers.

    Raises:
        ValueError: as `frechet_distance`.
    """
    if min(len(one), len(other)) >= one.shape[1]:
        return frechet_distance(gather_statistics(one), gather_statistics(other))
    if one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise ValueError(f"{tuple(one.shape)} and {tuple(other.shape)} features; use 2 rows or more of one extractor")
    x, y = one.detach().double(), other.detach().double()
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = (x - mean_x) / (len(x) - 1) ** 0.5, (y - mean_y) / (len(y) - 1) ** 0.5
    distance = (mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum()
    return max((distance - 2 * torch.linalg.svdvals(x @ y.T).sum()).item(), 0.0)


def _factor(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """F with F F^T = C; rounding below zero is taken as zero."""
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    return eigenvectors * eigenvalues.clamp(min=0).sqrt()
