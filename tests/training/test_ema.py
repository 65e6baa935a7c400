"""The moving average of weights."""

import pytest
import torch

from training.ema import MovingAverage


def test_average_follows_its_formula() -> None:
    values = [torch.tensor([float(i**2), 1.0]) for i in range(6)]
    average = MovingAverage(0.4, {"a": values[0]})
    expected = values[0].clone()
    for n, value in enumerate(values[1:], start=1):
        decay = min(0.4, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        average.update({"a": value})
    torch.testing.assert_close(average.tensors["a"], expected)


def test_average_does_not_share_memory_with_its_start() -> None:
    start = torch.ones(3)
    average = MovingAverage(0.9, {"a": start})
    start.zero_()
    assert average.tensors["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="EMA decay"):
        MovingAverage(decay, {})
