"""Gate S5: ten times the load that the service can carry; answers, waiting time of accepted jobs, goodput."""

import http.client
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from serving.backend import open_backend
from serving.jobs import JobStore
from serving.records import Job
from tests.serving.bench import Rows, ToyService, percentile
from tests.serving.peers import queue_service, run_toy

_CLIENTS = 8
_STEPS = 10


@dataclass(kw_only=True)
class Answers:
    """What the clients were answered."""

    accepted: list[str] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    others: int = 0

    @property
    def number(self) -> int:
        """All answers."""
        return len(self.accepted) + len(self.refused_s) + self.others


def overload(service: ToyService, rows: Rows, scale: float) -> None:
    """Measure the peak before and after, and the overload in between: the machine may have other work at times."""
    jobs = open_backend(service.config, service.stages, durable=False).jobs
    bound, seconds = service.config.max_unfinished, max(20.0, 180 * scale)
    before = _peak(service, jobs)
    began = time.time()
    answers = _clients(service, 10 * before, seconds)
    in_time = sum(_is_done(jobs.get(job)) for job in answers.accepted)
    took = time.time() - began
    done = [_wait(jobs, job) for job in answers.accepted]
    peak = (before + _peak(service, jobs)) / 2
    latency = percentile([(job.completed_at or 0.0) - job.created_at for job in done], 0.99)
    note = f"{answers.number} requests at {answers.number / seconds:.1f}/s, peak {peak:.2f} jobs/s, bound {bound}"
    rows.add("S5 other answers", answers.others, 0, 0, note=note)
    rows.add("S5 p99 / (bound x service)", latency * peak / bound, 1.5, 1.2, note=f"p99 {latency:.2f} s")
    note = f"{in_time} done in {took:.1f} s; p99 of 429 {1000 * percentile(answers.refused_s, 0.99):.1f} ms"
    rows.add("S5 goodput / peak", in_time / took / peak, 0.93, 0.97, note=note)
    _peer(service, rows, peak, 20.0)


def _peak(service: ToyService, jobs: JobStore, number: int = 40) -> float:
    """Jobs per second while the queue is kept full and nobody is refused."""
    sent: list[str] = []
    for index in range(number):
        if index >= service.config.max_unfinished:
            _wait(jobs, sent[index - service.config.max_unfinished])
        sent.append(service.submit(seed=index, num_inference_steps=_STEPS))
    ends = sorted(_wait(jobs, job).completed_at or 0.0 for job in sent)
    # The first jobs fill the stages.
    return (number - 5) / (ends[-1] - ends[4])


def _clients(service: ToyService, rate: float, seconds: float) -> Answers:
    """Send requests at random moments, `rate` a second in all, whatever is answered."""
    answers, stop_at = Answers(), time.monotonic() + seconds

    def client(number: int) -> None:
        chance, due = random.Random(number), time.monotonic()
        body = json.dumps({"prompt": "x", "seed": number, "num_inference_steps": _STEPS})
        # A bare connection: a client that costs as much as the service would be measured with it.
        line = http.client.HTTPConnection("127.0.0.1", service.config.port, timeout=60)
        while (due := due + chance.expovariate(rate / _CLIENTS)) < stop_at:
            time.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            line.request("POST", "/v1/videos", body, {"content-type": "application/json"})
            answer = line.getresponse()
            content = answer.read()
            if answer.status == 200:
                answers.accepted.append(json.loads(content)["id"])
            elif answer.status == 429 and answer.headers["retry-after"]:
                answers.refused_s.append(time.monotonic() - sent)
            else:
                answers.others += 1
        time.sleep(max(0.0, stop_at - time.monotonic()))

    with ThreadPoolExecutor(_CLIENTS) as pool:
        list(pool.map(client, range(_CLIENTS)))
    return answers


def _is_done(job: Job | None) -> bool:
    return job is not None and job.status == "completed"


def _wait(jobs: JobStore, job_id: str) -> Job:
    while (job := jobs.get(job_id)) is None or not job.is_finished:
        time.sleep(0.02)
    assert job.status == "completed", job.error_message
    return job


def _peer(service: ToyService, rows: Rows, peak: float, seconds: float) -> None:
    """The same load on a queue in memory, which has no bound."""
    sent: list[str] = []
    with queue_service(lambda job, request: run_toy(service.stages, job, request)) as url:
        stop_at = time.monotonic() + seconds
        while time.monotonic() < stop_at:
            sent.append(service.http.post(f"{url}/jobs", json={"num_inference_steps": _STEPS}).json()["id"])
            time.sleep(1 / (10 * peak))
        done = sum(service.http.get(f"{url}/jobs/{job}").json()["status"] == "completed" for job in sent)
    waited = (len(sent) - done) / max(done, 1) * seconds
    note = f"queue in FastAPI: {len(sent)} accepted in {seconds:.0f} s, none refused, {done} done; growing with time"
    rows.peer("S5 p99 / (bound x service)", waited * peak / service.config.max_unfinished, "", note)
