"""The service's processes without Ray: started, watched and started anew by one supervisor, as Serve's controller does.

They start by fork, in milliseconds: what is measured is the service, not how long Python takes to import.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import uvicorn

from serving.api import build_api
from serving.backend import open_backend
from serving.conductor import Conductor
from serving.config import ServeConfig
from serving.counters import Counters
from serving.stage_set import StageSet
from serving.worker import Worker

TABLE = "processes.json"


def start(config: ServeConfig, stages: StageSet, replicas: int) -> Any:
    """Start the supervisor; it starts ingress, conductor and so many workers of the first pool, one of the others."""
    supervisor = get_context("fork").Process(target=_supervise, args=(config, stages, replicas), daemon=False)
    supervisor.start()
    return supervisor


def processes(folder: Path, names: tuple[str, ...]) -> list[psutil.Process]:
    """Living processes of some roles."""
    found = []
    for role, pid in json.loads((folder / TABLE).read_text()).items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if any(role.split("#")[0] in name for name in names) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _supervise(config: ServeConfig, stages: StageSet, replicas: int) -> None:
    roles: dict[str, Callable[[], None]] = {
        "ingress": lambda: _ingress(config, stages),
        "conductor": lambda: Conductor(open_backend(config, stages, durable=False)).run(),
    }
    for place, pool in enumerate(stages.pools):
        for number in range(1 if place else replicas):
            roles[f"{pool}#{number}"] = lambda pool=pool: _worker(config, stages, pool)  # type: ignore[misc]
    alive: dict[int, str] = {}
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ending.append(number))
    while not ending:
        for role in roles.keys() - alive.values():
            alive[_fork(roles[role])] = role
            table = config.state / f".{TABLE}"
            table.write_text(json.dumps({role: pid for pid, role in alive.items()}))
            table.replace(config.state / TABLE)
        time.sleep(0.05)
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                alive.pop(pid, None)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def _fork(role: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            role()
        finally:
            os._exit(1)
    return pid


def _ingress(config: ServeConfig, stages: StageSet) -> None:
    uvicorn.run(build_api(open_backend(config, stages, durable=True)), port=config.port, log_level="error")


def _worker(config: ServeConfig, stages: StageSet, pool: str) -> None:
    backend = open_backend(config, stages, durable=False)
    Worker(
        owner=f"{pool}-{os.getpid()}-{time.time_ns()}",
        pool=pool,
        stage_set=stages,
        queue=backend.queue,
        releases=backend.releases,
        artifacts=backend.artifacts,
        bell=backend.bell,
        config=config.worker,
        observe=Counters(backend.queue.engine),
    ).run()
