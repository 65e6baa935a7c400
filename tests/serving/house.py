"""A whole service in one process: stores, workers and API in threads, over real HTTP, without Ray."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import uvicorn

from serving.api import build_api
from serving.backend import open_backend
from serving.conductor import Conductor
from serving.config import ServeConfig, WorkerConfig
from serving.counters import Counters
from serving.database import migrate
from serving.records import Bounds, NewJob
from serving.stage_set import StageSet
from serving.tenants import Quota
from serving.worker import Worker
from tests.serving.toy import ToyStages, make_checkpoint


class House:
    """A whole service in one process, without HTTP and Ray."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any] | None = None,
        *,
        stages: StageSet | None = None,
        checkpoint: str | None = None,
        **worker: Any,
    ) -> None:
        self.config = ServeConfig(
            checkpoint=checkpoint or make_checkpoint(folder),
            state=folder,
            worker=WorkerConfig(**worker),
            **(config or {}),
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.trace = folder / "trace"
        self.trace.touch()
        self.stages = stages or ToyStages(trace=str(self.trace))
        migrate(self.config.database_url)
        self.backend = open_backend(self.config, self.stages, durable=False)
        self.backend.tenants.anonymous(Quota(max_priority=9))
        digest, self.description = self.stages.describe(self.config.checkpoint)
        self.release = self.backend.releases.propose(digest, self.config.checkpoint, self.description)

    def worker(self, pool: str, owner: str | None = None) -> Worker:
        return Worker(
            owner=owner or pool,
            pool=pool,
            stage_set=self.stages,
            queue=self.backend.queue,
            releases=self.backend.releases,
            artifacts=self.backend.artifacts,
            bell=self.backend.bell,
            config=self.config.worker,
            observe=Counters(self.backend.queue.engine),
        )

    def submit(
        self, *, seed: int = 3, steps: int = 5, frames: int = 8, prompt: str = "a road", upload: str | None = None
    ) -> str:
        request = {
            "prompt": prompt,
            "seed": seed,
            "num_inference_steps": steps,
            "num_frames": frames,
            "guidance_scale": 1.0,
            "fps": 8.0,
            "width": 32,
            "height": 16,
            "scene": "",
            "inputs": {"video": upload} if upload else {},
        }
        return self.submit_request(request)

    def submit_request(self, request: dict[str, Any]) -> str:
        """Store a job for a request that has a value for every field."""
        new = NewJob(
            id=f"video_{uuid.uuid4().hex}",
            tenant="anonymous",
            release=self.release.digest,
            request=request,
            fingerprint="",
            tasks=self.stages.plan(request, self.description),
        )
        return self.backend.jobs.create(new, Bounds(max_unfinished=100))[0].id

    def steps(self, job: str) -> list[tuple[int, int]]:
        """Segment and step of each denoising step that was run for a job, in order."""
        lines = [line.split() for line in self.trace.read_text().splitlines()]
        return [(int(segment), int(step)) for _, _, owner, segment, step in lines if owner == job]

    def video(self, job: str) -> bytes:
        done = self.backend.jobs.get(job)
        assert done is not None
        assert done.status == "completed", (done.error_code, done.error_message)
        return self.backend.artifacts.get(done.results["video"])


@contextmanager
def working(*workers: Worker | Conductor) -> Iterator[None]:
    threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.stopping.set()
        for thread in threads:
            thread.join()


def wait_for(condition: Any, patience_s: float = 60.0) -> None:
    """Look again and again, giving way to the workers' threads in between."""
    pause = threading.Event()
    for _ in range(int(patience_s / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError(f"nothing came of {condition} within {patience_s} s")


@contextmanager
def serving(house: House) -> Iterator[str]:
    """Run the API on a free loopback port, with one worker per pool and the conductor; gives its URL."""
    server = uvicorn.Server(uvicorn.Config(build_api(house.backend), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    with working(*map(house.worker, house.stages.pools), Conductor(house.backend)):
        thread.start()
        wait_for(lambda: server.started)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        wait_for(lambda: httpx.get(f"{url}/ready").status_code == 200)
        yield url
        server.should_exit = True
        thread.join()
