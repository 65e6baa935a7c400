"""Intervals for any measure of a sample, by drawing the sample again from itself."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A measure of the whole sample and the interval that holds it with the given confidence."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    num_samples: int,
    measure: Callable[[Int[Tensor, " n"]], float],
    generator: torch.Generator,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    centred: bool = False,
) -> Interval:
    """Percentile interval of `measure`, which takes rows of the sample and may be a mean or a distance.

    Clips of one video are not independent: number videos, not clips, and let `measure` look up their clips.

    Args:
        num_samples: rows of the sample.
        measure: from row numbers, some of them repeated, to a number.
        generator: CPU generator of the resamples.
        num_resamples: how many.
        confidence: of the interval.
        centred: take the spread of the resamples but not their mean. For distances between sets: a resample repeats
            rows, so its distance is too large by an amount that has nothing to do with uncertainty.

    Raises:
        ValueError: If there is nothing to resample, or the confidence is no probability.

    Source: Efron and Tibshirani 1993, section 13.3.
    """
    if num_samples < 2 or num_resamples < 2 or not 0 < confidence < 1:
        raise ValueError(
            f"num_samples={num_samples}, num_resamples={num_resamples}, confidence={confidence}; "
            "use 2 or more samples and resamples, and a confidence between 0 and 1"
        )
    rows = torch.randint(num_samples, (num_resamples, num_samples), generator=generator)
    values = torch.tensor([measure(resample) for resample in rows], dtype=torch.float64)
    tail = (1 - confidence) / 2
    value = measure(torch.arange(num_samples))
    offset = value - values.mean().item() if centred else 0.0
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(value=value, low=low + offset, high=high + offset)
