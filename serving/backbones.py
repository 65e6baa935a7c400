"""Many image backbones under one set of temporal layers: only what differs is kept, and switching swaps pointers."""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
_BUDGET_BYTES = 8 * 2**30


class Backbones:
    """Variants of one network's weights.

    Args:
        network: the image U-Net inside the video models; it holds one variant at a time.
        folders: diffusers folder of each further backbone, by name.
        budget_bytes: memory for what differs; the least recently used variants are dropped and read again when needed.
    """

    def __init__(self, network: nn.Module, folders: dict[str, str], budget_bytes: int = _BUDGET_BYTES) -> None:
        self._folders, self._budget_bytes = folders, budget_bytes
        self._parameters = dict(network.named_parameters())
        self._base = {name: parameter.data for name, parameter in self._parameters.items()}
        self._differences: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._now: str | None = None

    def use(self, name: str | None) -> None:
        """Put a backbone in place; None is the checkpoint's own.

        Raises:
            ValueError: there is no such backbone, or its weights do not fit.
        """
        if name == self._now:
            return
        difference = {} if name is None else self._load(name)
        if self._now is not None:
            for key in self._differences.get(self._now, self._base):
                self._parameters[key].data = self._base[key]
        for key, value in difference.items():
            self._parameters[key].data = value
        self._now = name
        self._drop_old()

    def _load(self, name: str) -> dict[str, Tensor]:
        if name in self._differences:
            self._differences.move_to_end(name)
            return self._differences[name]
        if name not in self._folders:
            raise ValueError(
                f"backbone {name!r} is not served; use one of {', '.join(sorted(self._folders)) or 'none'}"
            )
        weights = load_file(Path(self._folders[name]) / WEIGHTS)
        difference = {}
        for key, base in self._base.items():
            own = weights.get(key)
            if own is None or own.shape != base.shape:
                raise ValueError(f"backbone {name!r} does not fit: {key} is missing or of another shape")
            moved = own.to(device=base.device, dtype=base.dtype)
            if not torch.equal(moved, base):
                difference[key] = moved.clone()
        self._differences[name] = difference
        return difference

    def _drop_old(self) -> None:
        sizes = {name: sum(t.nbytes for t in kept.values()) for name, kept in self._differences.items()}
        for name in list(self._differences):
            if sum(sizes.values()) <= self._budget_bytes:
                return
            if name != self._now:
                del self._differences[name], sizes[name]
