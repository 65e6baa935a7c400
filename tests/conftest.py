"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
import s3fs

# By default Ray's workers give way to everything else: the other tests would starve them.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what starts clusters in one process, for two at once crowd a machine, and let it begin: it is the longest.

    First of its kind: xdist reads the groups in the same hook.
    """
    items.sort(key=lambda item: (not item.get_closest_marker("ray"), not item.get_closest_marker("slow")))
    for item in items:
        if item.get_closest_marker("ray") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(autouse=True)
def _forget_s3_endpoints() -> Iterator[None]:
    """Let the next test meet its own server: s3fs keeps connections by their arguments, not by the environment."""
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(autouse=True)
def _stay_ordinary() -> Iterator[None]:
    """Take back what SVT-AV1 does for root: the thread that opens it becomes a real-time one, and all its children."""
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
