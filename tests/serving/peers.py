"""What is commonly put around a video pipeline: a queue inside one FastAPI process, and Ray Serve's documented pattern.

The first is how open video servers keep their jobs: a dict and a queue in memory, no bound, and a DELETE that forgets
the record. The second is Ray Serve's Stable Diffusion example: an ingress that awaits one deployment that holds the
pipeline.
"""

import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from serving.stage_set import Call
from tests.serving.house import wait_for
from tests.serving.toy import ToyStages

Work = Callable[[str, dict[str, Any]], object]


def run_toy(stages: ToyStages, job: str, request: dict[str, Any]) -> bytes:
    """The first segment of a toy request, without any service."""
    full = {"prompt": "x", "seed": 1, "scene": "", "width": 32, "height": 16, "fps": 8.0, "inputs": {}, **request}
    data = b""
    for stage in ("keyframes", "decode"):
        call = Call(job=job, request=full, stage=stage, segment=0, inputs=(data,) if data else (), files={}, state=None)
        run = stages.run({"name": "toy"}, call)
        while True:
            try:
                next(run)
            except StopIteration as end:
                data = end.value.data
                break
    return data


def queue_app(work: Work) -> FastAPI:
    """The API over a queue in memory, with one worker thread."""
    app = FastAPI()
    jobs: dict[str, dict[str, Any]] = {}
    waiting: queue.Queue[str] = queue.Queue()

    def loop() -> None:
        while True:
            job = waiting.get()
            if record := jobs.get(job):
                record["result"] = work(job, record["request"])
                record["status"] = "completed"

    threading.Thread(target=loop, daemon=True).start()

    @app.post("/jobs")
    def create(request: dict[str, Any]) -> dict[str, Any]:
        job = uuid.uuid4().hex
        jobs[job] = {"status": "queued", "request": request}
        waiting.put(job)
        return {"id": job}

    @app.get("/jobs/{job}")
    def retrieve(job: str) -> dict[str, Any]:
        return {"id": job, "status": jobs[job]["status"]}

    @app.delete("/jobs/{job}")
    def delete(job: str) -> dict[str, Any]:
        return {"id": job, "deleted": jobs.pop(job, None) is not None}

    return app


@contextmanager
def queue_service(work: Work) -> Iterator[str]:
    """Run the queue in this process on a free loopback port; gives its URL."""
    server = uvicorn.Server(uvicorn.Config(queue_app(work), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


class PatternModel:
    """The deployment that holds the pipeline: one call makes one clip."""

    def __init__(self, stages: ToyStages) -> None:
        self.stages = stages

    def __call__(self, job: str, steps: int) -> int:
        """Make a clip; gives its length in bytes."""
        return len(run_toy(self.stages, job, {"num_inference_steps": steps}))


class PatternIngress:
    """The deployment that takes requests and awaits the other one."""

    def __init__(self, model: Any) -> None:
        self.model = model

    async def __call__(self, request: Any) -> int:
        """Answer when the clip is made."""
        given = request.query_params
        made: int = await self.model.remote(given["job"], int(given["steps"]))
        return made


def pattern_app(stages: ToyStages) -> Any:
    """Bind Ray Serve's pattern around the toy stages."""
    from ray import serve  # noqa: PLC0415

    def small(replica: type, name: str) -> Any:
        return serve.deployment(name=name, ray_actor_options={"num_cpus": 0.05}, max_ongoing_requests=100)(replica)

    return small(PatternIngress, "pattern-ingress").bind(small(PatternModel, "pattern-model").bind(stages))
