import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from serving.database import read
from serving.records import ConflictError, QueueFullError
from serving.sweep import Sweeper
from serving.tables import deliveries, tenants
from serving.tenants import Quota, TenantStore


def test_create_with_the_same_key_twice_makes_one_job(service):
    first = service.submit(idempotency_key="k1")
    second = service.submit(idempotency_key="k1")
    assert first.id == second.id
    with pytest.raises(ConflictError, match="k1"):
        service.submit(idempotency_key="k1", fingerprint="other")


def test_create_by_many_threads_with_one_key_makes_one_job(service):
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.append(service.submit(idempotency_key="k", fingerprint="same").id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_create_again_within_the_replay_window_finds_the_job_and_later_makes_another(service):
    first = service.submit()
    assert service.submit(replay_window_s=20.0).id == first.id
    assert service.submit(replay_window_s=20.0, fingerprint="other").id != first.id
    service.clock.now += 30.0
    assert service.submit(replay_window_s=20.0).id != first.id


def test_create_beyond_the_bound_is_refused_also_when_many_try_at_once(service):
    outcomes: list[str] = []

    def attempt(i: int) -> None:
        try:
            outcomes.append(service.submit(bound=5, fingerprint=str(i)).id)
        except QueueFullError as error:
            outcomes.append("full" if error.retry_after_s > 0 else "no estimate")

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("full") == 7


def test_create_counts_each_tenants_quota_alone(service):
    service.tenants.add("small", Quota(max_unfinished=1, daily_cost=8.0))
    first = service.submit(tenant="small")
    with pytest.raises(QueueFullError, match="1 unfinished"):
        service.submit(tenant="small")
    service.submit()
    service.jobs.cancel(first.id)
    with pytest.raises(QueueFullError, match="2 left today"):
        service.submit(tenant="small")


def test_tenants_share_the_workers_by_weight(service):
    service.tenants.add("heavy", Quota(weight=3.0))
    service.tenants.add("light", Quota(weight=1.0))
    for i in range(60):
        service.submit(tenant="light", steps=20, fingerprint=f"l{i}")
        service.submit(tenant="heavy", steps=20, fingerprint=f"h{i}")
    served = []
    for _ in range(40):
        lease = service.queue.lease("w", ("paint",), ("r1",))
        service.clock.now += 20.0
        service.queue.renew(lease)
        service.queue.complete(lease, "x")
        served.append(service.jobs.get(lease.job).tenant)
    assert 27 <= served.count("heavy") <= 33


@settings(deadline=None, max_examples=25)
@given(page=st.integers(1, 7), count=st.integers(0, 12), ascending=st.booleans())
def test_list_pages_cover_each_job_once_in_order(tmp_path_factory, page, count, ascending):
    from tests.serving.conftest import Service, migrate  # noqa: PLC0415

    url = f"sqlite:///{tmp_path_factory.mktemp('list')}/jobs.db"
    migrate(url)
    service = Service(url)
    made = []
    for i in range(count):
        made.append(service.submit(fingerprint=str(i)).id)
        service.clock.now += i % 2
    seen: list[str] = []
    while part := service.jobs.list("anonymous", limit=page, after=seen[-1] if seen else None, ascending=ascending):
        seen += [job.id for job in part]
    service.close()
    assert sorted(seen) == sorted(made)
    times = [made.index(job_id) // 2 for job_id in seen]
    assert times == sorted(times, reverse=not ascending)


def test_list_and_get_hide_the_jobs_of_others(service):
    service.tenants.add("other", Quota())
    job = service.submit()
    assert service.jobs.get(job.id, "other") is None
    assert service.jobs.list("other", limit=5) == []
    assert service.jobs.get(job.id, "anonymous") == service.jobs.list("anonymous", limit=5)[0]


def test_queue_position_counts_those_whose_turn_is_earlier(service):
    long = service.submit(steps=50)
    short = service.submit(steps=2)
    urgent = service.submit(steps=90, priority=1)
    assert [service.jobs.queue_position(job) for job in (urgent, short, long)] == [0, 1, 2]


def test_end_of_a_job_with_a_callback_queues_one_event(service):
    done = service.submit(callback_url="https://example.org/hook")
    for output in ("latents", "clip"):
        service.queue.complete(service.queue.lease("w", ("paint", "show"), ("r1",)), output)
    gone = service.submit(callback_url="https://example.org/hook")
    service.jobs.cancel(gone.id)
    service.jobs.cancel(gone.id)
    with read(service.engine) as connection:
        events = connection.execute(select(deliveries.c.job, deliveries.c.type)).all()
    assert sorted(events) == sorted([(done.id, "video.completed"), (gone.id, "video.failed")])


def test_delete_removes_job_and_tasks(service):
    job = service.submit()
    service.jobs.cancel(job.id)
    service.jobs.delete(job.id)
    assert service.jobs.get(job.id) is None


def test_sweep_fails_overdue_jobs_and_finds_old_results(service):
    job = service.submit(deadline_s=5.0)
    sweeper = Sweeper(service.engine, service.bell, service.clock)
    assert sweeper.end_overdue() == []
    service.clock.now += 6.0
    assert sweeper.end_overdue() == [job.id]
    assert service.jobs.get(job.id).error_code == "deadline_exceeded"
    assert sweeper.expired(100.0) == []
    service.clock.now += 101.0
    assert sweeper.expired(100.0) == [job.id]


def test_keys_are_found_by_digest_only_and_not_after_revocation(service):
    store: TenantStore = service.tenants
    key, _ = store.add("ann", Quota())
    assert store.find(key).name == "ann"
    assert store.find(key[:-1] + "_") is None
    with read(service.engine) as connection:
        stored = connection.execute(select(tenants).where(tenants.c.name == "ann")).one()
    assert key not in map(str, stored)
    with pytest.raises(ValueError, match="ann"):
        store.add("ann", Quota())
    store.revoke("ann")
    assert store.find(key) is None
