import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch.testing import assert_close

from pipelines.metrics.frechet import (
    FeatureStatistics,
    distance_between,
    frechet_distance,
    gather_statistics,
    merge_statistics,
)
from pipelines.randomness import generator


def features(n: int, d: int, *keys: int | str, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    numbers = generator(n, d, *keys)
    mixing = torch.randn((d, d), generator=numbers, dtype=torch.float64)
    return shift + scale * torch.randn((n, d), generator=numbers, dtype=torch.float64) @ mixing


def reference_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The formula with scipy's matrix square root, as the published implementations have it."""
    x, y = one.numpy(), other.numpy()
    c_x, c_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(c_x @ c_y).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c_x + c_y - 2 * root))


@pytest.mark.parametrize(("n", "m", "d"), [(50, 70, 5), (400, 300, 64), (2000, 1500, 128)])
def test_distance_equals_scipy(n, m, d):
    one, other = features(n, d, "one"), features(m, d, "other", scale=1.5, shift=0.3)
    distance = frechet_distance(gather_statistics(one), gather_statistics(other))
    assert distance == pytest.approx(reference_distance(one, other), rel=1e-9)


def test_distance_of_diagonal_gaussians_is_their_closed_form():
    """For commuting covariances it is |mu_1 - mu_2|^2 + sum (s_1 - s_2)^2."""
    mean_1, mean_2 = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    deviation_1, deviation_2 = torch.tensor([1.0, 3.0, 0.0]).double(), torch.tensor([2.0, 0.5, 4.0]).double()
    one = FeatureStatistics(count=11, mean=mean_1, scatter=10 * torch.diag(deviation_1**2))
    other = FeatureStatistics(count=21, mean=mean_2, scatter=20 * torch.diag(deviation_2**2))
    expected = ((mean_1 - mean_2) ** 2).sum() + ((deviation_1 - deviation_2) ** 2).sum()
    assert frechet_distance(one, other) == pytest.approx(expected.item(), rel=1e-12)


def test_distance_to_itself_is_zero_even_without_full_rank():
    for n, d in [(400, 64), (30, 64)]:
        statistics = gather_statistics(features(n, d, "one"))
        assert statistics.has_full_rank == (n > d)
        assert 0 <= frechet_distance(statistics, statistics) < 1e-8 * statistics.covariance.trace().item()


def test_distance_without_full_rank_is_that_of_the_occupied_plane():
    """Rows in a plane of 3 of 40 dimensions: rotating them must not change what the 3 dimensions give."""
    one, other = features(20, 3, "one"), features(25, 3, "other", scale=2.0)
    rotation, _ = torch.linalg.qr(torch.randn((40, 40), generator=generator("rotation"), dtype=torch.float64))
    inside = frechet_distance(gather_statistics(one), gather_statistics(other))
    rotated = frechet_distance(gather_statistics(one @ rotation[:3]), gather_statistics(other @ rotation[:3]))
    assert rotated == pytest.approx(inside, rel=1e-9)


def test_distance_is_symmetric_and_shifts_add_their_square():
    one, other = features(200, 16, "one"), features(150, 16, "other")
    forth = frechet_distance(gather_statistics(one), gather_statistics(other))
    assert frechet_distance(gather_statistics(other), gather_statistics(one)) == pytest.approx(forth, rel=1e-9)
    shifted = frechet_distance(gather_statistics(one), gather_statistics(one + 2.0))
    assert shifted == pytest.approx(16 * 4.0, rel=1e-9)


@given(cuts=st.lists(st.integers(1, 59), unique=True, max_size=8), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_statistics_of_parts_merge_to_those_of_the_whole(cuts, seed):
    whole = features(60, 7, seed, shift=5.0)
    parts = [gather_statistics(part) for part in torch.tensor_split(whole, sorted(cuts))]
    merged = merge_statistics(parts)
    assert merged.count == 60
    assert_close(merged.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    assert_close(merged.covariance, torch.from_numpy(np.cov(whole.numpy(), rowvar=False)), rtol=1e-10, atol=1e-10)


def test_statistics_far_from_zero_keep_their_digits():
    """Summed squares in float32, or in float64 at this offset, would lose the covariance."""
    small = features(5000, 3, "far", scale=1e-2)
    far = 1e6 + small
    merged = merge_statistics(gather_statistics(part) for part in far.split(13))
    expected = torch.from_numpy(np.cov(far.numpy() - 1e6, rowvar=False))
    assert_close(merged.covariance, expected, rtol=1e-7, atol=0)


def test_float32_features_are_gathered_in_float64():
    rows = features(100, 4, "half", shift=100.0).float()
    statistics = gather_statistics(rows)
    assert statistics.scatter.dtype == torch.float64
    assert_close(
        statistics.covariance, torch.from_numpy(np.cov(rows.double().numpy(), rowvar=False)), rtol=1e-10, atol=0
    )


def test_unusable_features_are_refused():
    bad = features(4, 3, "bad")
    bad[2, 1] = float("inf")
    one, narrow = gather_statistics(features(4, 3, "one")), gather_statistics(features(4, 2, "narrow"))
    with pytest.raises(ValueError, match="1 of 4 rows"):
        gather_statistics(bad)
    with pytest.raises(ValueError, match="1 or more"):
        gather_statistics(bad[:0])
    with pytest.raises(ValueError, match="2 or more"):
        frechet_distance(one, gather_statistics(features(1, 3, "single")))
    with pytest.raises(ValueError, match="one feature extractor"):
        frechet_distance(one, narrow)
    with pytest.raises(ValueError, match="one feature extractor"):
        merge_statistics([one, narrow])
    with pytest.raises(ValueError, match="1 or more parts"):
        merge_statistics([])


@pytest.mark.parametrize(("n", "m", "d"), [(7, 11, 40), (12, 60, 40), (90, 60, 40)])
def test_distance_from_rows_equals_that_from_covariances(n, m, d):
    one, other = features(n, d, "one"), features(m, d, "other", scale=1.5, shift=0.3)
    expected = frechet_distance(gather_statistics(one), gather_statistics(other))
    # Roots of eigenvalues that are zero but for rounding leave 1e-8 in the reference.
    assert distance_between(one, other) == pytest.approx(expected, rel=1e-7)


def test_distance_from_rows_names_sets_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(3, 5\) and \(4, 6\)"):
        distance_between(features(3, 5), features(4, 6))
