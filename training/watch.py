"""What a run watches for: bad samples, slow workers, waiting for data."""

import math
from collections import deque
from statistics import median_low

import torch
from jaxtyping import Float
from torch import Tensor

from training.config import WatchConfig


def bad_samples(
    losses: Float[Tensor, " b"],
    magnitudes: Float[Tensor, " b"],
    mean_loss: float,
    config: WatchConfig,
) -> dict[int, str]:
    """Say which samples of a batch must not train the network, and why.

    Args:
        losses: loss of each sample.
        magnitudes: largest absolute input of each sample.
        mean_loss: running mean of good losses, 0 while there is none.
        config: limits.
    """
    reasons = {}
    for i, (loss, magnitude) in enumerate(zip(losses.tolist(), magnitudes.tolist(), strict=True)):
        if not math.isfinite(magnitude):
            reasons[i] = f"input is not finite ({magnitude})"
        elif magnitude > config.max_magnitude:
            reasons[i] = f"input reaches {magnitude:.3g}, above {config.max_magnitude:g}"
        elif not math.isfinite(loss):
            reasons[i] = f"loss is not finite ({loss})"
        elif mean_loss > 0 and loss > config.max_loss_ratio * mean_loss:
            reasons[i] = f"loss {loss:.3g} is over {config.max_loss_ratio:g} times the mean {mean_loss:.3g}"
    return reasons


class StragglerWatch:
    """Names workers that are slower than the others.

    Args:
        window: steps over which the median is taken.
        ratio: how many times slower than the (lower) median worker counts.
    """

    def __init__(self, window: int = 8, ratio: float = 1.3) -> None:
        self.ratio = ratio
        self._recent: deque[list[float]] = deque(maxlen=window)

    def slow_workers(self, seconds: list[float]) -> list[int]:
        """Take the seconds per virtual shard of each worker in one step; return the ranks that are slow of late."""
        self._recent.append(seconds)
        if len(self._recent) < (self._recent.maxlen or 1) or len(seconds) < 2:
            return []
        # A busy moment lengthens some steps; a slow worker lengthens all, its fastest one too.
        by_rank = [[row[rank] for row in self._recent] for rank in range(len(seconds))]
        medians, fastest = [median_low(values) for values in by_rank], [min(values) for values in by_rank]
        limits = self.ratio * median_low(medians), self.ratio * median_low(fastest)
        return [rank for rank in range(len(seconds)) if medians[rank] > limits[0] and fastest[rank] > limits[1]]


def largest(values: Tensor) -> Float[Tensor, " b"]:
    """Largest absolute value of each sample; NaN if there is one."""
    return torch.amax(values.detach().abs().flatten(1), dim=1)
