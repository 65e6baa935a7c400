"""What Ray Serve runs: thin classes around the API, the workers and the conductor, one per deployment."""

import logging
import os
import socket
import threading
import uuid
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from infra.cli import configure_logs
from pipelines.memory import keep_freed_memory
from serving.api import build_api
from serving.backend import open_backend
from serving.conductor import Conductor
from serving.config import ServeConfig
from serving.counters import Counters
from serving.stage_set import StageSet
from serving.traces import write_logs, write_traces
from serving.worker import Worker

logger = logging.getLogger(__name__)


@serve.ingress()
class Ingress:
    """The API. Holds stores only; no frames or latents pass through it but finished files on their way out."""

    def __init__(self, config: ServeConfig, stage_set: StageSet, *_others: DeploymentHandle[Any]) -> None:
        # The other deployments are bound here only to belong to the application; nothing is sent to them.
        _observe(config, "ingress")
        self.backend = open_backend(config, stage_set, durable=True)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self.backend)

    def check_health(self) -> None:
        """Healthy as long as it answers: a database that is away comes back without a restart."""


class StageReplica:
    """One worker of a pool, in a thread. Work is pulled from the database; Serve only keeps the process alive."""

    def __init__(self, config: ServeConfig, stage_set: StageSet, pool: str) -> None:
        _observe(config, pool)
        _set_up_torch(config.worker.num_threads)
        backend = open_backend(config, stage_set, durable=False)
        self.counters = Counters(backend.queue.engine)
        self.worker = Worker(
            owner=f"{pool}-{socket.gethostname()[:32]}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
            pool=pool,
            stage_set=stage_set,
            queue=backend.queue,
            releases=backend.releases,
            artifacts=backend.artifacts,
            bell=backend.bell,
            config=config.worker,
            observe=self.counters,
        )
        self.thread = threading.Thread(target=self.worker.run, daemon=True)
        self.thread.start()
        threading.Thread(target=self._flush, daemon=True).start()

    def check_health(self) -> None:
        """Ask Serve for a new replica when the worker has ended.

        Raises:
            RuntimeError: the worker's thread is gone.
        """
        if not self.thread.is_alive():
            raise RuntimeError("the worker has ended")

    def process_id(self) -> int:
        """Process of this replica, for tests that kill it."""
        return os.getpid()

    def __del__(self) -> None:
        # Serve calls this when a replica is to go: what runs is saved and given back.
        self.worker.stopping.set()
        self.thread.join(timeout=30.0)

    def _flush(self) -> None:
        while not self.worker.stopping.wait(5.0):
            try:
                self.counters.flush()
            except Exception:
                logger.exception("figures not written; they are lost")


class ConductorReplica:
    """The conductor, in a thread."""

    def __init__(self, config: ServeConfig, stage_set: StageSet) -> None:
        _observe(config, "conductor")
        self.conductor = Conductor(open_backend(config, stage_set, durable=False))
        self.thread = threading.Thread(target=self.conductor.run, daemon=True)
        self.thread.start()

    def check_health(self) -> None:
        """Ask Serve for a new conductor when this one has ended.

        Raises:
            RuntimeError: the thread is gone.
        """
        if not self.thread.is_alive():
            raise RuntimeError("the conductor has ended")

    def __del__(self) -> None:
        self.conductor.stopping.set()


def _observe(config: ServeConfig, process: str) -> None:
    configure_logs()
    write_traces(config.traces, process)
    write_logs(config.logs, process)


def _set_up_torch(num_threads: int) -> None:
    import torch  # noqa: PLC0415  (the API's and the conductor's processes do without it)

    torch.set_num_threads(num_threads)
    keep_freed_memory()
