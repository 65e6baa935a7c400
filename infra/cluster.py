"""Connect to the Ray cluster of the environment, or start one on this machine."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

ROOT = Path(__file__).resolve().parents[1]
"""Folder that holds the packages; shipped to the workers of a remote cluster."""


@contextmanager
def connect(*, num_cpus: int | None = None, object_store_bytes: int | None = None) -> Iterator[None]:
    """Hold a connection to Ray while the block runs.

    With RAY_ADDRESS set, joins that cluster and ships the packages to it. Without, starts a private one in a
    temporary folder and ends it afterwards, so that two commands on one machine never meet. Inside a process that is
    already connected, nothing is started or ended.

    Args:
        num_cpus: CPUs the private cluster may use; default all of the machine's.
        object_store_bytes: memory of the private cluster's object store; default Ray's choice.
    """
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env={"working_dir": str(ROOT)}, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Ray's sockets live below this folder and a socket's path is limited to 107 bytes: keep it short.
    with tempfile.TemporaryDirectory(prefix="vldm", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"env_vars": worker_environment()},
            _temp_dir=folder,
            # Workers come when something runs in them: idle ones cost a second to start and a hundredth of a core each.
            _system_config={"prestart_worker_first_driver": False},
        )
        try:
            yield
        finally:
            ray.shutdown()


def worker_environment() -> dict[str, str]:
    """Environment of worker processes on this machine: the packages' path, DeepSpeed's choices, quiet libraries."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "TOKENIZERS_PARALLELISM": "false",
        # Ray runs what it is given in threads, which must not have arenas of their own: see pipelines/memory.py.
        "MALLOC_ARENA_MAX": "1",
        **{name: os.environ[name] for name in ("DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR") if name in os.environ},
    }
