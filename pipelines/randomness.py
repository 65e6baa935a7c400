"""Random numbers as a pure function of names, so that no result depends on order, worker or restart."""

import hashlib

import torch


def generator(*keys: int | str) -> torch.Generator:
    """Make a CPU generator whose numbers depend on `keys` alone.

    Args:
        keys: what the numbers are for, such as (seed, "keyframes", window, step). Order and type matter.

    Returns:
        A generator to be used for one purpose and thrown away.
    """
    digest = hashlib.sha256(repr(keys).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
