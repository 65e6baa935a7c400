import random
import threading
from collections import Counter

import pytest

from serving.leases import Lease, LeaseLostError

STAGES = ("paint", "show")


def take(service, owner="w1", stages=STAGES):
    return service.queue.lease(owner, stages, ("r1",))


def test_lease_runs_tasks_in_order_of_need_and_finishes_the_job(service):
    job = service.submit(steps=4)
    assert take(service, stages=("show",)) is None
    paint = take(service)
    assert (paint.stage, paint.num_steps, paint.inputs) == ("paint", 4, ())
    service.queue.complete(paint, "latents-1")
    show = take(service)
    assert (show.stage, show.inputs) == ("show", ("latents-1",))
    service.queue.complete(show, "clip-1", {"video": "clip-1"})
    done = service.jobs.get(job.id)
    assert (done.status, done.results, done.steps_done, done.num_steps) == ("completed", {"video": "clip-1"}, 5, 5)


def test_lease_that_ran_out_goes_to_another_worker_and_fences_off_the_first(service):
    service.submit()
    first = take(service, "w1")
    service.queue.save(first, 2, "state-2")
    assert take(service, "w2") is None
    service.clock.now += 11.0
    second = take(service, "w2")
    assert (second.state, second.steps_done, second.token) == ("state-2", 2, first.token + 1)
    for write in (
        lambda: service.queue.save(first, 3, "late"),
        lambda: service.queue.complete(first, "late"),
        lambda: service.queue.look(first, STAGES, ("r1",)),
    ):
        with pytest.raises(LeaseLostError):
            write()
    service.queue.give_back(first)
    service.queue.complete(second, "latents")
    assert take(service).inputs == ("latents",)


def test_lease_renewed_in_time_is_kept(service):
    service.submit()
    lease = take(service)
    for _ in range(4):
        service.clock.now += 8.0
        service.queue.renew(lease)
        assert take(service, "w2") is None


def test_lease_lost_three_times_without_progress_fails_the_job(service):
    job = service.submit()
    for _ in range(3):
        assert take(service) is not None
        service.clock.now += 11.0
    assert take(service) is None
    assert (service.jobs.get(job.id).status, service.jobs.get(job.id).error_code) == ("failed", "worker_lost")


def test_lease_lost_many_times_with_progress_goes_on(service):
    service.submit(steps=9)
    for step in range(1, 9):
        service.queue.save(take(service), step, f"state-{step}")
        service.clock.now += 11.0
    assert take(service).state == "state-8"


def test_cancel_shows_at_the_next_look_and_no_task_follows(service):
    job = service.submit()
    lease = take(service)
    assert not service.queue.look(lease, STAGES, ("r1",)).is_cancelled
    assert service.jobs.cancel(job.id).status == "cancelled"
    assert service.jobs.is_running(job.id)
    assert service.queue.look(lease, STAGES, ("r1",)).is_cancelled
    service.queue.let_go(lease)
    assert not service.jobs.is_running(job.id)
    assert take(service) is None


def test_cancel_of_a_job_whose_worker_died_starts_no_new_work(service):
    job = service.submit()
    assert take(service)
    service.jobs.cancel(job.id)
    service.clock.now += 11.0
    assert take(service, "w2") is None


def test_complete_after_cancel_does_not_revive_the_job(service):
    job = service.submit()
    service.queue.complete(take(service), "latents")
    show = take(service)
    service.jobs.cancel(job.id)
    with pytest.raises(LeaseLostError):
        service.queue.complete(show, "clip", {"video": "clip"})
    assert service.jobs.get(job.id).status == "cancelled"
    assert service.jobs.get(job.id).results == {}


def test_look_preempts_a_long_task_for_a_short_one_but_not_the_other_way(service):
    service.submit(steps=50)
    long = take(service)
    service.clock.now += 1.0
    service.submit(steps=4)
    assert service.queue.look(long, STAGES, ("r1",)).is_preempted
    service.queue.save(long, 7, "state-7")
    service.queue.give_back(long)
    short = take(service)
    assert short.num_steps == 4
    assert not service.queue.look(short, STAGES, ("r1",)).is_preempted
    service.queue.complete(short, "latents")
    service.queue.complete(take(service, stages=("show",)), "clip")
    again = take(service)
    assert (again.num_steps, again.steps_done, again.state) == (50, 7, "state-7")


def test_long_task_is_not_kept_waiting_for_ever_by_short_ones(service):
    long = service.submit(steps=10)
    order = []
    while long.id not in order and len(order) < 60:
        service.submit(steps=1)
        lease = take(service, stages=("paint",))
        order.append(lease.job)
        service.clock.now += 1.0
        service.queue.complete(lease, "latents")
    assert order[-1] == long.id
    assert 20 < len(order) < 60


def test_look_tells_that_the_deadline_passed(service):
    service.submit(deadline_s=30.0)
    lease = take(service)
    assert not service.queue.look(lease, STAGES, ("r1",)).is_overdue
    service.clock.now += 31.0
    assert service.queue.look(lease, STAGES, ("r1",)).is_overdue


def run_worker(service, owner: str, seed: int, done: Counter, stop: threading.Event) -> None:
    chance = random.Random(seed)
    while not stop.is_set():
        lease: Lease | None = service.queue.lease(owner, STAGES, ("r1",))
        if lease is None:
            if chance.random() < 0.2:
                service.clock.now += 3.0
            continue
        try:
            if chance.random() < 0.3:
                continue  # died with the lease in its hands
            service.queue.save(lease, 1, f"{owner}-state")
            if chance.random() < 0.2:
                service.queue.give_back(lease)
                continue
            service.queue.complete(lease, f"{lease.job}/{lease.stage}")
            done[lease.job, lease.stage] += 1
        except LeaseLostError:
            continue


def test_workers_that_die_at_random_finish_every_task_exactly_once(service):
    service.queue.max_attempts = 1000
    ids = [service.submit(steps=2, fingerprint=str(i)).id for i in range(40)]
    done: Counter = Counter()
    stop = threading.Event()
    workers = [threading.Thread(target=run_worker, args=(service, f"w{i}", i, done, stop)) for i in range(4)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(20_000):
            if all(service.jobs.get(job_id).is_finished for job_id in ids):
                break
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert {service.jobs.get(job_id).status for job_id in ids} == {"completed"}
    assert done == {(job_id, stage): 1 for job_id in ids for stage in STAGES}
