"""Peak memory of tensors, counted exactly and the same on every machine."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Count the bytes of the tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see((args, kwargs), is_new=False)
        result = func(*args, **(kwargs or {}))
        self._see(result, is_new=True)
        self.peak = max(self.peak, self.now)
        return result

    def _see(self, tree: object, *, is_new: bool) -> None:
        """Count storages when an operation makes them; those that were there before, such as weights, count nothing."""
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.live:
                    self.live[key] = storage.nbytes() if is_new else 0
                    self.now += self.live[key]
                    weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.live.pop(key)
