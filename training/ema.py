"""Moving average of the trained weights: what validation samples from and what is exported."""

from collections.abc import Mapping

import torch
from torch import Tensor


class MovingAverage:
    """Exponential moving average of a set of named tensors, in fp32.

    The decay rises with the number of updates n as (1 + n) / (10 + n), so that a short run does not average over its
    random start.

    Args:
        decay: share of the old average kept at each update, below 1.
        tensors: start; copied.
        updates: how often the average was updated before.
    """

    def __init__(self, decay: float, tensors: Mapping[str, Tensor], updates: int = 0) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} must be at least 0 and below 1, such as 0.999")
        self.decay = decay
        self.updates = updates
        self.tensors = {name: tensor.detach().float().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Move towards `tensors`, which must have the names of the start."""
        assert tensors.keys() == self.tensors.keys()
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in tensors.items():
            self.tensors[name].lerp_(tensor.detach().float(), 1 - decay)
