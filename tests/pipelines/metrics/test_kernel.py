import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from pipelines.metrics.kernel import kernel_distance, polynomial_mmd
from pipelines.randomness import generator


def features(n: int, d: int, *keys: int | str, shift: float = 0.0) -> torch.Tensor:
    return shift + torch.randn((n, d), generator=generator(n, d, *keys))


@pytest.mark.parametrize(("n", "m", "d"), [(30, 30, 8), (25, 40, 64), (2, 3, 5)])
def test_distance_equals_a_loop_over_scikit_learn_kernels(n, m, d):
    one, other = features(n, d, "one"), features(m, d, "other", shift=0.5)
    x, y = one.double().numpy(), other.double().numpy()
    options = {"degree": 3, "gamma": 1 / d, "coef0": 1}
    k_xx, k_yy, k_xy = (polynomial_kernel(a, b, **options) for a, b in ((x, x), (y, y), (x, y)))
    expected = sum(k_xx[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    expected += sum(k_yy[i, j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    expected -= 2 * k_xy.mean()
    assert polynomial_mmd(one, other) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_distance_is_unbiased():
    """The mean over many small draws from one distribution is 0, where a biased estimate would be positive."""
    distances = torch.tensor([polynomial_mmd(features(5, 4, "x", i), features(6, 4, "y", i)) for i in range(1500)])
    standard_error = distances.std() / 1500**0.5
    assert distances.mean().abs() < 5 * standard_error
    assert distances.min() < 0


def test_distance_of_constant_features_is_their_closed_form():
    """x = (a, a, ..) and y = (b, b, ..) give (a^2 + 1)^3 + (b^2 + 1)^3 - 2 (a b + 1)^3."""
    one, other = torch.full((4, 3), 2.0), torch.full((5, 3), -1.0)
    assert polynomial_mmd(one, other) == pytest.approx(5**3 + 2**3 - 2 * (-1) ** 3)


def test_subsets_estimate_the_distance_of_the_whole():
    one, other = features(600, 8, "one"), features(500, 8, "other", shift=0.4)
    whole = polynomial_mmd(one, other)
    distance = kernel_distance(one, other, generator("subsets"), num_subsets=200, subset_size=100)
    assert distance.std > 0
    assert distance.mean == pytest.approx(whole, abs=5 * distance.std / 200**0.5)
    assert distance == kernel_distance(one, other, generator("subsets"), num_subsets=200, subset_size=100)


def test_subsets_as_large_as_the_sets_are_the_whole():
    one, other = features(40, 8, "one"), features(40, 8, "other", shift=0.4)
    distance = kernel_distance(one, other, generator("subsets"), num_subsets=3, subset_size=1000)
    assert distance.mean == pytest.approx(polynomial_mmd(one, other), rel=1e-12)
    assert distance.std == pytest.approx(0.0, abs=1e-12)


def test_unusable_features_are_refused():
    with pytest.raises(ValueError, match="2 or more"):
        polynomial_mmd(features(1, 4, "one"), features(5, 4, "other"))
    with pytest.raises(ValueError, match="one feature extractor"):
        polynomial_mmd(features(5, 4, "one"), features(5, 3, "other"))
    with pytest.raises(ValueError, match="use 1 and 2"):
        kernel_distance(features(5, 4, "one"), features(5, 4, "other"), generator(), num_subsets=0)
