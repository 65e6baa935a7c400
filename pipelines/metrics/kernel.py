"""Kernel distance between two sets of features: unbiased, so fit for few samples, where the Frechet distance is not."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.metrics.frechet import Features, OtherFeatures


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation of the distance over random subsets."""

    mean: float
    std: float


def polynomial_mmd(one: Features, other: OtherFeatures) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x y / d + 1)^3; slightly negative for equal sets.

    Raises:
        ValueError: If a set has fewer than two rows, or they differ in their number of features.

    Source: Binkowski et al. 2018 (arXiv 1801.01401), equation 4 and section 3; Gretton et al. 2012, lemma 6.
    """
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"{one.shape[1]} and {other.shape[1]} features; use one feature extractor")
    n, m = len(one), len(other)
    if min(n, m) < 2:
        raise ValueError(f"{n} and {m} rows of features; the unbiased distance needs 2 or more of each")
    x, y = one.detach().double(), other.detach().double()
    within_x, within_y = _kernel(x, x), _kernel(y, y)
    mean_x = (within_x.sum() - within_x.trace()) / (n * (n - 1))
    mean_y = (within_y.sum() - within_y.trace()) / (m * (m - 1))
    return (mean_x + mean_y - 2 * _kernel(x, y).mean()).item()


def kernel_distance(
    one: Features, other: OtherFeatures, generator: torch.Generator, *, num_subsets: int = 100, subset_size: int = 1000
) -> KernelDistance:
    """KID's protocol: the mean of `polynomial_mmd` over random subsets, and how much they scatter.

    Args:
        one: features of one set.
        other: features of the other.
        generator: CPU generator that chooses the subsets.
        num_subsets: how many.
        subset_size: rows of each set in a subset; all rows if a set has fewer.

    Raises:
        ValueError: If there is no subset; else as `polynomial_mmd`.
    """
    if num_subsets < 1 or subset_size < 2:
        raise ValueError(f"num_subsets={num_subsets}, subset_size={subset_size}; use 1 and 2 or more")
    distances = torch.tensor(
        [
            polynomial_mmd(_choose(one, subset_size, generator), _choose(other, subset_size, generator))
            for _ in range(num_subsets)
        ],
        dtype=torch.float64,
    )
    return KernelDistance(mean=distances.mean().item(), std=distances.std(correction=0).item())


def _choose(features: Features, size: int, generator: torch.Generator) -> Float[Tensor, "size d"]:
    return features[torch.randperm(len(features), generator=generator)[:size].to(features.device)]


def _kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3
