"""What all tests share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[str]:
    """Address of a Ray cluster that several tests join, as commands do with RAY_ADDRESS: each takes 40 s of CPU."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - seconds, for few

    # Sockets live below this folder and a socket's path is limited to 107 bytes.
    folder = Path(f"/tmp/vldm-s{os.getpid()}")
    folder.mkdir()
    head = {
        "num_cpus": os.cpu_count(),
        "include_dashboard": False,
        "object_store_memory": 300 * 2**20,
        "_system_config": {"prestart_worker_first_driver": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        for name in ("PROXY_READY_CHECK", "PROXY_HEALTH_CHECK"):
            patch.setenv(f"RAY_SERVE_{name}_TIMEOUT_S", "60")
        cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster.address
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


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
