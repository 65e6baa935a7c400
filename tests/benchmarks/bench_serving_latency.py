"""Gate S2: API, durable queue and four stages without work, against the same four as deployments chained by handles.

`python tests/benchmarks/bench_serving_latency.py --requests 100`; the two are asked in turn, on one Ray.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx2 as httpx
import ray
from ray import serve

from infra.ports import free_port
from serving.backend import open_backend
from serving.config import Limits, PoolConfig, ServeConfig, WorkerConfig
from serving.records import TaskSpec
from serving.service import running
from serving.stage_set import Call, Output, State
from tests.serving.bench import Rows, percentile
from tests.serving.peers import queue_service

STAGES = ("one", "two", "three", "four")
KIB, LARGE_KIB = 1024, 2**14

Payloads = dict[int, bytes]
"""What a stage makes, by its size in KiB."""


@dataclass(frozen=True, kw_only=True)
class NoStages:
    """Four stages, each in a pool of its own, with `num_frames` KiB between them; what the last makes is small."""

    @property
    def pools(self) -> dict[str, tuple[str, ...]]:
        return {name: (name,) for name in STAGES}

    def describe(self, checkpoint: str) -> tuple[str, dict[str, Any]]:
        defaults = {"name": "none", "sizes": [[16, 16]], "fps": 1.0, "num_frames": 1}
        return "0" * 64, {**defaults, "num_inference_steps": 1, "guidance_scale": 1.0, "max_frames": LARGE_KIB}

    def load(self, checkpoint: str, pool: str) -> Payloads:
        # Each pool has its own: files are named by content, and no two stages that work make the same.
        return {kib: bytes([STAGES.index(pool)]) * (kib * KIB) for kib in (1, LARGE_KIB)}

    def plan(self, request: dict[str, Any], description: dict[str, Any]) -> tuple[TaskSpec, ...]:
        return tuple(
            TaskSpec(stage=name, segment=0, needs=(i - 1,) if i else (), num_steps=1, cost=0.01)
            for i, name in enumerate(STAGES)
        )

    def run(self, model: Payloads, call: Call) -> Generator[State, None, Output]:
        yield {}
        kib = 1 if call.stage == STAGES[-1] else call.request["num_frames"]
        return Output(data=model[kib], suffix=".bin")

    def preview(self, model: Payloads, state: State) -> None:
        return None


class Bare:
    """One stage of the bare chain."""

    def __call__(self, data: bytes) -> bytes:
        return data


class Chain:
    """The ingress of the bare chain: passes a payload through four deployments by reference."""

    def __init__(self, *stages: Any) -> None:
        self.stages = stages

    async def __call__(self, request: Any) -> int:
        data: Any = bytes(int(request.query_params["size"]))
        for stage in self.stages:
            data = stage.remote(data)
        return len(await data)


def queue_latencies(requests: int) -> list[float]:
    """Latencies of a queue in one FastAPI process around work that is none."""
    times, pause = [], threading.Event()
    with queue_service(lambda _, request: request) as url, httpx.Client() as client:
        for _ in range(requests):
            began = time.time()
            job = client.post(f"{url}/jobs", json={}).json()["id"]
            while client.get(f"{url}/jobs/{job}").json()["status"] != "completed":
                pause.wait(0.005)
            times.append(time.time() - began)
    return times


def bare_app() -> Any:
    small = {"num_cpus": 0.05}
    stages = [serve.deployment(name=f"bare-{name}", ray_actor_options=small)(Bare).bind() for name in STAGES]
    return serve.deployment(name="chain", ray_actor_options=small)(Chain).bind(*stages)


def measure(config: ServeConfig, stages: NoStages, requests: int) -> dict[str, list[float]]:
    """Latencies in seconds of both, in turn, and of ours with 16 MiB between the stages."""
    times: dict[str, list[float]] = {"bare": [], "served": [], "served 16 MiB": []}
    jobs = open_backend(config, stages, durable=False).jobs
    pause = threading.Event()
    with httpx.Client(base_url=f"http://127.0.0.1:{config.port}", timeout=60) as client:
        for number in range(requests + 5):
            began = time.time()
            client.get("/bare", params={"size": KIB}).raise_for_status()
            middle = time.time()
            took = {"bare": middle - began}
            for name, size in (("served", 1), ("served 16 MiB", LARGE_KIB)):
                sent = time.time()
                answer = client.post("/v1/videos", json={"prompt": "x", "num_frames": size})
                assert answer.status_code == 200, answer.text
                job = answer.json()["id"]
                while not (found := jobs.get(job)) or not found.is_finished:
                    pause.wait(0.005)
                assert found.completed_at is not None
                took[name] = found.completed_at - sent
                # Else its files stay in memory, and a virtual machine is slow to give memory never used before.
                client.delete(f"/v1/videos/{job}").raise_for_status()
            if number >= 5:
                for name, value in took.items():
                    times[name].append(value)
    return times


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=50)
    arguments = parser.parse_args()
    rows = Rows(command=f"bench_serving_latency.py --requests {arguments.requests}")
    folder = Path(tempfile.mkdtemp(prefix="vldm-bench", dir="/tmp"))
    config = ServeConfig(
        checkpoint="none",
        state=folder,
        port=free_port(),
        limits=Limits(max_frames=LARGE_KIB),
        worker=WorkerConfig(preview_every_s=1e9),
        denoise=PoolConfig(num_cpus=0.1),
    )
    try:
        with running(config, NoStages(), num_cpus=2):
            serve.run(bare_app(), name="bare", route_prefix="/bare")
            times = measure(config, NoStages(), arguments.requests)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bare, served, large = (times[name] for name in ("bare", "served", "served 16 MiB"))
    note = f"{1000 * percentile(served, 0.5):.1f} against {1000 * percentile(bare, 0.5):.1f} ms"
    rows.add("S2 p50 / bare handles", percentile(served, 0.5) / percentile(bare, 0.5), 3, 1.5, note=note)
    note = f"{1000 * percentile(served, 0.99):.1f} against {1000 * percentile(bare, 0.99):.1f} ms"
    rows.add("S2 p99 / bare handles", percentile(served, 0.99) / percentile(bare, 0.99), 4, 2, note=note)
    note = f"{1000 * percentile(large, 0.5):.1f} against {1000 * percentile(served, 0.5):.1f} ms"
    rows.add("S2 16 MiB / 1 KB", percentile(large, 0.5) / percentile(served, 0.5), 1.5, 1.15, note=note)
    peer = queue_latencies(arguments.requests)
    note = f"queue in FastAPI, one process, nothing stored: {1000 * percentile(peer, 0.5):.1f} ms"
    rows.peer("S2 p50 / bare handles", percentile(peer, 0.5) / percentile(bare, 0.5), "", note)
    rows.peer("S2 p50 / bare handles", 1.0, "", "Ray Serve's pattern with four deployments is the bare chain itself")
    return 1 if rows.missed else 0


if __name__ == "__main__":
    assert not ray.is_initialized()
    sys.exit(main())
