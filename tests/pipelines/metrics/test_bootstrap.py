import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from pipelines.metrics.bootstrap import bootstrap_interval
from pipelines.metrics.frechet import frechet_distance, gather_statistics
from pipelines.randomness import generator


def test_interval_of_a_mean_equals_scipy():
    sample = torch.randn(80, generator=generator("sample")).double() ** 2
    interval = bootstrap_interval(80, lambda rows: sample[rows].mean().item(), generator("rows"), num_resamples=20_000)
    reference = bootstrap(
        (sample.numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    width = reference.high - reference.low
    assert interval.value == pytest.approx(sample.mean().item())
    assert interval.low == pytest.approx(reference.low, abs=0.03 * width)
    assert interval.high == pytest.approx(reference.high, abs=0.03 * width)


def test_interval_holds_the_truth_as_often_as_it_says():
    """Means of 60 normals: an 80 % percentile interval holds 0 in about 79 % of trials."""
    held = 0
    for trial in range(150):
        sample = torch.randn(60, generator=generator("sample", trial))
        interval = bootstrap_interval(
            60,
            lambda rows, sample=sample: sample[rows].mean().item(),
            generator("rows", trial),
            num_resamples=200,
            confidence=0.8,
        )
        held += interval.low <= 0 <= interval.high
    # Binomial: standard deviation 5.
    assert abs(held - 0.79 * 150) < 20


def test_interval_of_a_distance_takes_repeated_rows():
    numbers = generator("features")
    one, other = (torch.randn((60, 3), generator=numbers) for _ in range(2))
    fixed = gather_statistics(other)
    interval = bootstrap_interval(
        60, lambda rows: frechet_distance(gather_statistics(one[rows]), fixed), generator("rows"), num_resamples=50
    )
    assert interval.value == pytest.approx(frechet_distance(gather_statistics(one), fixed))
    assert 0 <= interval.low < interval.high


@pytest.mark.parametrize("change", [{"num_samples": 1}, {"num_resamples": 1}, {"confidence": 1.0}])
def test_interval_of_nothing_is_refused(change):
    arguments = {"num_samples": 5, "measure": lambda rows: 0.0, "generator": generator(), **change}
    with pytest.raises(ValueError, match="2 or more samples"):
        bootstrap_interval(**arguments)
