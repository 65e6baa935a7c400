"""Gates of the service that need no network: faults, cancels, determinism, order, overload, latency, memory, rollout.

`python tests/benchmarks/bench_serving.py --gates S3,S4 --scale 1` (scale 1 is the full size; CI runs 0.1).
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx2 as httpx

from tests.serving.bench import Rows, ToyService, kill_every, percentile, toy_service
from tests.serving.overload import overload
from tests.serving.peers import pattern_app, queue_service, run_toy
from tests.serving.processes import memory_bytes
from tests.serving.toy import make_checkpoint


def clip_digest(service: ToyService, job: str) -> str:
    return hashlib.sha256(service.get(f"/v1/videos/{job}/content").content).hexdigest()


def faults(service: ToyService, rows: Rows, scale: float) -> None:
    """S3 and S6: jobs under random kills, each compared with the bytes of the same request run alone."""
    kinds = [{"seed": seed, "num_inference_steps": steps} for seed in range(4) for steps in (6, 10, 14)]
    expected = []
    for kind in kinds:
        job = service.submit(**kind)
        service.wait(job)
        expected.append(clip_digest(service, job))
    number = max(10, int(300 * scale))
    before = len(service.steps())
    stop, kills = threading.Event(), []
    killer = threading.Thread(target=kill_every, args=(service, service.kill_every_s, stop, kills), daemon=True)
    killer.start()
    ids = [service.submit(**kinds[i % len(kinds)]) for i in range(number)]
    videos = [service.wait(job) for job in ids]
    stop.set()
    killer.join()
    lost = sum(video["status"] != "completed" for video in videos)
    altered = sum(clip_digest(service, job) != expected[i % len(kinds)] for i, job in enumerate(ids))
    needed = sum(kinds[i % len(kinds)]["num_inference_steps"] for i in range(number))
    again = (len(service.steps()) - before - needed) / needed
    note = f"{number} jobs, {len(kills)} kills"
    listed: list[str] = []
    while page := service.get(f"/v1/videos?limit=100{'&after=' + listed[-1] if listed else ''}").json()["data"]:
        listed += [video["id"] for video in page]
    rows.add("S3 lost", lost, 0, 0, note=note)
    rows.add("S3 doubled", len(listed) - number - len(kinds), 0, 0, note=note)
    rows.add("S3 altered", altered, 0, 0, note=note)
    rows.add("S3 steps recomputed", again, 0.20, 0.10, note=note)
    rows.add("S6 unequal bytes", altered, 0, 0, note=f"{number} of mixed sizes of work, replicas and kills")


def cancels(service: ToyService, rows: Rows, scale: float) -> None:
    """S4: cancel at random moments; count the steps that begin after the answer."""
    number = max(20, int(200 * scale))
    chance = random.Random(1)
    answered = {}
    for _ in range(number):
        job = service.submit(seed=1, num_inference_steps=50)
        time.sleep(chance.random() * 0.6)
        service.http.post(f"/v1/videos/{job}/cancel").raise_for_status()
        answered[job] = time.time()
    time.sleep(1.0)
    late = dict.fromkeys(answered, 0)
    for at, job, _, _ in service.steps():
        if job in late and at > answered[job]:
            late[job] += 1
    rows.add("S4 most late steps", max(late.values()), 1, 0, note=f"{number} cancels")
    rows.add("S4 without late step", sum(not n for n in late.values()) / number, 0.0, 0.99)
    _peer_cancels(service, rows, max(3, number // 10))


def _peer_cancels(service: ToyService, rows: Rows, number: int) -> None:
    """The same against a queue in memory (DELETE) and Ray Serve's pattern (the client goes away)."""

    def late(name: str, answered: dict[str, float]) -> None:
        time.sleep(3.0)
        counts = [
            sum(job == each and at > done for at, each, _, _ in service.steps()) for job, done in answered.items()
        ]
        rows.peer("S4 most late steps", max(counts), "", f"{name}: {number} cancels, {sum(counts)} steps in all")

    chance, answered = random.Random(2), {}
    with queue_service(lambda job, request: run_toy(service.stages, job, request)) as url:
        for _ in range(number):
            job = service.http.post(f"{url}/jobs", json={"num_inference_steps": 50}).json()["id"]
            time.sleep(chance.random() * 0.6)
            service.http.delete(f"{url}/jobs/{job}").raise_for_status()
            answered[job] = time.time()
        late("queue in FastAPI", answered)
    if service.is_plain:
        return
    from ray import serve  # noqa: PLC0415

    serve.run(pattern_app(service.stages), name="pattern", route_prefix="/pattern")
    answered = {}
    for number_ in range(number):
        job = f"pattern-{number_}"
        with contextlib.suppress(httpx.TimeoutException):
            service.http.get("/pattern", params={"job": job, "steps": 50}, timeout=0.1 + chance.random() * 0.5)
        answered[job] = time.time()
    late("Ray Serve's pattern", answered)
    serve.delete("pattern")


def order(service: ToyService, rows: Rows, scale: float) -> None:
    """S7: a 4-step job behind 50-step jobs, in steps of the long ones and in time beyond one step."""
    waits, steps_s = [], []
    for _ in range(max(3, int(10 * scale))):
        long = [service.submit(seed=1, num_inference_steps=400) for _ in range(4)]
        time.sleep(1.0)
        sent = time.time()
        short = service.submit(seed=2, num_inference_steps=4)
        accepted = time.time()
        service.wait(short)
        trace = service.steps()
        first = min(at for at, job, _, _ in trace if job == short)
        # The trace writes a line at the end of a step's work, so the first line lies one step behind its start.
        gaps = [b[0] - a[0] for a, b in pairwise(trace) if a[1] == b[1] in long]
        step_s = sorted(gaps)[len(gaps) // 2]
        waits.append(max(0.0, (first - accepted) / step_s - 1))
        steps_s.append(step_s)
        for job in long:
            service.http.post(f"/v1/videos/{job}/cancel")
        del sent
    note = f"step {1000 * percentile(steps_s, 0.5):.0f} ms; two denoising replicas, both busy"
    rows.add("S7 wait in steps (median)", percentile(waits, 0.5), 2, 1 + 0.02 / percentile(steps_s, 0.5), note=note)


def memory(service: ToyService, rows: Rows, scale: float) -> None:
    """S12: memory of all processes over many mixed jobs, per job."""
    number = max(40, int(500 * scale))

    def mixed(count: int) -> None:
        jobs = []
        for i in range(count):
            jobs.append(service.submit(prompt="raise" if i % 5 == 0 else "x", seed=i, num_inference_steps=3))
            if i % 5 == 1:
                service.http.post(f"/v1/videos/{jobs[-1]}/cancel")
        for job in jobs:
            service.wait(job)

    mixed(number // 2)
    before = memory_bytes(os.getpid())
    mixed(number)
    slope = (memory_bytes(os.getpid()) - before) / number / 1024
    rows.add("S12 memory per job", slope, 8, 1, "KB", note=f"{number} jobs: done, failed, cancelled")


def rollout(service: ToyService, rows: Rows, scale: float) -> None:
    """S10: a new checkpoint, then a broken one, under constant load."""
    stop = threading.Event()
    failures: list[str] = []
    jobs: list[str] = []

    def load() -> None:
        while not stop.is_set():
            answer = service.http.post("/v1/videos", json={"prompt": "x", "num_inference_steps": 3})
            if answer.status_code == 200:
                jobs.append(answer.json()["id"])
            else:
                failures.append(answer.text)
            stop.wait(0.2)

    from serving.config import ServeConfig  # noqa: PLC0415
    from serving.rollout import roll_out  # noqa: PLC0415

    thread = threading.Thread(target=load)
    thread.start()
    time.sleep(2)
    folder = service.config.state
    good = ServeConfig(checkpoint=make_checkpoint(folder, "next"), state=folder)
    roll_out(good, service.stages, 60)
    time.sleep(2)
    broken = ServeConfig(checkpoint=make_checkpoint(folder, "bad", broken=True), state=folder)
    try:
        roll_out(broken, service.stages, 60)
        failures.append("the broken checkpoint was taken")
    except ValueError:
        pass
    time.sleep(2)
    stop.set()
    thread.join()
    videos = [service.wait(job) for job in jobs]
    failures += [json.dumps(video["error"]) for video in videos if video["status"] != "completed"]
    models = [video["model"] for video in videos]
    assert models == sorted(models, key=["toy", "next"].index), "the order of releases is broken"
    rows.add("S10 failed requests", len(failures), 0, 0, note=f"{len(jobs)} jobs over two rollouts {failures[:2]}")


GATES = {"S3": faults, "S4": cancels, "S7": order, "S12": memory, "S10": rollout}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gates", default="S3,S4,S7,S10,S12,S5")
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--without-ray", action="store_true", help="the same processes, started by a supervisor")
    parser.add_argument("--kill-every-s", type=float, default=10.0, help="time between two SIGKILLs of S3")
    parser.add_argument("--work", type=int, default=1000, help="side of the matrix product of a step")
    arguments = parser.parse_args()
    names = arguments.gates.split(",")
    how = " --without-ray" if arguments.without_ray else ""
    work = f" --work {arguments.work}" if arguments.work != 1000 else ""
    how += f" --kill-every-s {arguments.kill_every_s:g}" if arguments.kill_every_s != 10.0 else ""
    rows = Rows(command=f"bench_serving.py --gates {arguments.gates} --scale {arguments.scale:g}{work}{how}")
    shared = {"with_ray": not arguments.without_ray, "work": arguments.work}
    if others := [name for name in names if name in GATES]:
        with toy_service(**shared) as service:
            service.kill_every_s = arguments.kill_every_s
            for name in others:
                GATES[name](service, rows, arguments.scale)
    if "S5" in names:
        # One worker denoises: the other core is for the API and its clients.
        with toy_service(**shared, max_unfinished=16, replicas=1) as service:
            overload(service, rows, arguments.scale)
    return 1 if rows.missed else 0


if __name__ == "__main__":
    sys.exit(main())
