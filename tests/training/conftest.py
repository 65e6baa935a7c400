"""Fixtures of the training tests."""

from collections.abc import Callable

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

Spawn = Callable[..., None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # The number of threads decides how sums are split, so it is part of the bits; a fork must not inherit a pool.
    torch.set_num_threads(1)


@pytest.fixture
def spawn() -> Spawn:
    """Run target(rank, *arguments) in `count` processes and wait for them."""

    def run(target: Callable[..., None], count: int, *arguments: object) -> None:
        start_processes(target, args=arguments, nprocs=count, start_method="fork")  # type: ignore[no-untyped-call]

    return run
