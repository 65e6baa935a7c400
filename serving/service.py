"""Starting and ending the service on this machine or a cluster: the tables, the first release, Serve."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve.config import HTTPOptions

from infra.cluster import connect
from serving.app import build_app
from serving.backend import open_backend
from serving.config import ServeConfig
from serving.database import migrate
from serving.preflight import check_port
from serving.rollout import wait_active
from serving.stage_set import StageSet

logger = logging.getLogger(__name__)

_READY_S = 600.0
_READY_ATTEMPTS = 5
# Serve ends a proxy that is not ready within 5 s of its start, again and again on a machine with other work to do.
_PATIENT_SERVE = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
}


@contextmanager
def running(config: ServeConfig, stage_set: StageSet, *, num_cpus: int | None = None) -> Iterator[None]:
    """Hold a running service while the block runs.

    Args:
        config: of the service.
        stage_set: what it serves.
        num_cpus: CPUs of the private Ray cluster that is started when there is none.

    Raises:
        ValueError: no checkpoint, the port is in use (nothing has been started then), or it cannot be loaded.
    """
    digest, description = stage_set.describe(config.checkpoint)
    check_port(config.host, config.port)
    migrate(config.database_url)
    releases = open_backend(config, stage_set, durable=True).releases
    releases.propose(digest, config.checkpoint, description)
    for name, value in _PATIENT_SERVE.items():
        # Inherited by the processes of the private cluster; a cluster that is there already has its own.
        os.environ.setdefault(name, value)
    with connect(num_cpus=num_cpus, object_store_bytes=300_000_000):
        options, app = HTTPOptions(host=config.host, port=config.port), build_app(config, stage_set, description)
        try:
            _patiently(lambda: serve.start(http_options=options))
            _patiently(lambda: serve.run(app, name="videoldm", route_prefix="/", blocking=False))
            wait_active(releases, digest, config.checkpoint, _READY_S)
            yield
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _patiently(action: Callable[[], object]) -> None:
    """Ask Serve again: it gives its proxy a minute to come up, and then takes up where it was."""
    for left in reversed(range(_READY_ATTEMPTS)):
        try:
            action()
            return
        except TimeoutError as err:
            if not left:
                raise
            logger.warning("%s Waiting on; the machine is busy.", err)
