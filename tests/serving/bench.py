"""What the serving benchmarks share: rows, percentiles, and a toy service on Ray with one entry per kind of process."""

import contextlib
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx

from infra.ports import free_port
from serving.backend import open_backend
from serving.config import Limits, PoolConfig, ServeConfig, WorkerConfig
from serving.database import migrate
from serving.tenants import Quota
from tests.serving import plain
from tests.serving.processes import descendants
from tests.serving.toy import ToyStages, make_checkpoint


@dataclass(kw_only=True)
class Rows:
    """Prints one row per gate and remembers whether a floor was missed."""

    command: str
    missed: list[str] = field(default_factory=list)

    def add(self, gate: str, figure: float, floor: float, target: float, unit: str = "", note: str = "") -> None:
        """Print a row; the smaller figure is the better one unless the target is above the floor."""
        sign = 1 if target <= floor else -1
        word = "target" if sign * figure <= sign * target else "floor" if sign * figure <= sign * floor else "missed"
        if word == "missed":
            self.missed.append(gate)
        print(
            f"{gate:28} {figure:10.4g} {unit:6} floor {floor:<8g} target {target:<8g} {word:7} {self.command}  {note}",
            flush=True,
        )

    def peer(self, gate: str, figure: float, unit: str, note: str) -> None:
        """Print what something else does under the same gate."""
        print(f"{gate:28} {figure:10.4g} {unit:6} peer {'':30} {self.command}  {note}", flush=True)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class ToyService:
    """A toy service on Ray, driven over HTTP. `work` sets the CPU time of a step."""

    def __init__(
        self, folder: Path, *, work: int, max_unfinished: int = 2000, lease_s: float = 2.0, replicas: int = 2
    ) -> None:
        port = free_port()
        self.is_plain, self.kill_every_s = False, 10.0
        self.num_replicas = replicas
        self.trace = folder / "trace"
        self.trace.touch()
        self.stages = ToyStages(work=work, trace=str(self.trace))
        self.config = ServeConfig(
            checkpoint=make_checkpoint(folder),
            state=folder,
            port=port,
            max_unfinished=max_unfinished,
            limits=Limits(max_steps=10_000),
            worker=WorkerConfig(
                lease_s=lease_s, save_every_s=0.1, report_every_s=0.2, preview_every_s=1e9, max_attempts=50
            ),
            denoise=PoolConfig(min_replicas=replicas, max_replicas=replicas, num_cpus=0.3),
            decode=PoolConfig(num_cpus=0.3),
        )
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60, limits=httpx.Limits(max_connections=64))

    def submit(self, **fields: Any) -> str:
        """Create a job, trying again while the service is away, as clients do."""
        key = f"{random.random()}"
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = self.http.post("/v1/videos", json={"prompt": "x", **fields}, headers={"idempotency-key": key})
                if answer.status_code == 200:
                    return str(answer.json()["id"])
                if answer.status_code < 500:
                    raise AssertionError(answer.text)
            time.sleep(0.2)

    def get(self, path: str) -> Any:
        """Get, trying again while the service is away."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = self.http.get(path)
                if answer.status_code < 500:
                    return answer
            time.sleep(0.2)

    def wait(self, job: str) -> dict[str, Any]:
        """Wait for the end of a job."""
        while True:
            video: dict[str, Any] = self.get(f"/v1/videos/{job}").json()
            if video["status"] not in ("queued", "in_progress"):
                return video
            time.sleep(0.05)

    def steps(self) -> list[tuple[float, str, int, int]]:
        """Time, job, segment and number of each denoising step that was run."""
        lines = (line.split() for line in self.trace.read_text().splitlines())
        return [(float(at), job, int(segment), int(step)) for at, _, job, segment, step in lines]

    def replicas(self, *names: str) -> list[Any]:
        """Processes of deployments, or of Serve's own actors."""
        if self.is_plain:
            return plain.processes(self.config.state, names)
        return [process for process in descendants(os.getpid()) if any(name in process.cmdline()[0] for name in names)]


@contextlib.contextmanager
def plain_running(service: ToyService) -> Iterator[None]:
    """Run the service's processes without Ray."""
    migrate(service.config.database_url)
    backend = open_backend(service.config, service.stages, durable=True)
    backend.tenants.anonymous(Quota(max_priority=9))
    digest, description = service.stages.describe(service.config.checkpoint)
    backend.releases.propose(digest, service.config.checkpoint, description)
    # Connections do not outlive a fork.
    backend.jobs.engine.dispose()
    service.is_plain = True
    supervisor = plain.start(service.config, service.stages, service.num_replicas)
    try:
        while service.get("/ready").status_code != 200:
            time.sleep(0.1)
        yield
    finally:
        supervisor.terminate()
        supervisor.join()


@contextlib.contextmanager
def toy_service(*, with_ray: bool = True, **settings: Any) -> Iterator[ToyService]:
    """Run a toy service in a folder of its own, on Ray Serve or as plain processes."""
    folder = Path(tempfile.mkdtemp(prefix="vldm-bench", dir="/tmp"))
    try:
        service = ToyService(folder, **settings)
        if not with_ray:
            with plain_running(service):
                yield service
            return
        from serving.service import running  # noqa: PLC0415

        with running(service.config, service.stages, num_cpus=2):
            yield service
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kill_every(service: ToyService, period_s: float, stop: threading.Event, kills: list[str], seed: int = 0) -> None:
    """Send SIGKILL to a random stage replica every so often; ingress, conductor and controller get their turn too.

    The next kill waits until every pool has a replica again: on a machine where a process takes longer to start than
    the period, there would be nothing left to kill, and nothing to measure.
    """
    chance = random.Random(seed)
    special = ["videoldm:ingress", "videoldm:conductor", "ServeController"]
    while not stop.wait(period_s):
        while not stop.wait(0.2) and not all(map(service.replicas, ("videoldm:denoise", "videoldm:decode"))):
            continue
        names = ["videoldm:denoise", "videoldm:decode"]
        if special and len(kills) % 3 == 2:
            names = [special.pop(0)]
        victims = service.replicas(*names)
        if victims:
            victim = chance.choice(victims)
            with contextlib.suppress(Exception):
                kills.append(victim.cmdline()[0])
                victim.send_signal(signal.SIGKILL)
