"""What a caller can do with jobs: create once, look, list, cancel, delete; each in one transaction."""

import time
import uuid
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, func, insert, or_, select, update

from serving.admission import check_room, is_full, seconds_per_job, take_rank
from serving.bell import Bell
from serving.database import read, take_admission_lock, write
from serving.order import comes_before, queue, turn
from serving.records import UNFINISHED, WEBHOOK_TYPES, Bounds, Clock, ConflictError, Job, NewJob, Status, TaskSpec
from serving.tables import deliveries, jobs, tasks


class JobStore:
    """Jobs in a database. Safe to use from several threads and processes at once."""

    def __init__(self, engine: Engine, bell: Bell, clock: Clock = time.time) -> None:
        self.engine, self.bell, self.clock = engine, bell, clock

    def create(self, new: NewJob, bounds: Bounds) -> tuple[Job, bool]:
        """Store a job and its tasks, once per idempotency key.

        Returns:
            The job, and whether this call made it (False: it was there from an earlier, identical call).

        Raises:
            ConflictError: the idempotency key belongs to another request.
            QueueFullError: no room for another job.
        """
        with write(self.engine) as connection:
            take_admission_lock(connection)
            if earlier := self._find_earlier(connection, new):
                return earlier, False
            check_room(connection, new, bounds, self.clock())
            job_id = self._insert(connection, new)
            job = _job(connection, job_id)
        for stage in {spec.stage for spec in new.tasks if not spec.needs}:
            self.bell.ring(stage)
        assert job is not None
        return job, True

    def is_full(self, bounds: Bounds) -> bool:
        """Whether there is no room for another job, whoever sends it."""
        with read(self.engine) as connection:
            return is_full(connection, bounds)

    def seconds_per_job(self) -> float:
        """Estimate the time between two finished jobs."""
        with read(self.engine) as connection:
            return seconds_per_job(connection, self.clock())

    def get(self, job_id: str, tenant: str | None = None) -> Job | None:
        """Look a job up; None if there is none, or if it is another tenant's."""
        with read(self.engine) as connection:
            job = _job(connection, job_id)
        return job if job and tenant in (None, job.tenant) else None

    def list(self, tenant: str, *, limit: int, after: str | None = None, ascending: bool = False) -> list[Job]:
        """List a tenant's jobs by creation time, starting behind job `after`; an unknown `after` lists nothing."""
        key = (jobs.c.created_at, jobs.c.id)
        order = [column.asc() if ascending else column.desc() for column in key]
        query = select(jobs.c.id).where(jobs.c.tenant == tenant).order_by(*order).limit(limit)
        with read(self.engine) as connection:
            if after is not None:
                start = connection.execute(select(*key).where(jobs.c.id == after, jobs.c.tenant == tenant)).first()
                if start is None:
                    return []
                created_at, job_id = start
                later, tie = (
                    (jobs.c.created_at > created_at, jobs.c.id > job_id)
                    if ascending
                    else (jobs.c.created_at < created_at, jobs.c.id < job_id)
                )
                query = query.where(or_(later, and_(jobs.c.created_at == created_at, tie)))
            found = [_job(connection, row.id) for row in connection.execute(query).all()]
        return [job for job in found if job is not None]

    def cancel(self, job_id: str) -> Job | None:
        """End an unfinished job now; its workers stop at their next step. Finished jobs stay as they are."""
        with write(self.engine) as connection:
            end_job(connection, job_id, "cancelled", self.clock())
            stages = connection.execute(select(tasks.c.stage).where(tasks.c.job == job_id).distinct()).scalars().all()
            job = _job(connection, job_id)
        for stage in stages:
            self.bell.ring(stage)
        self.bell.ring("conductor")
        return job

    def is_running(self, job_id: str) -> bool:
        """Whether a living worker still holds a task of the job."""
        held = and_(tasks.c.job == job_id, tasks.c.status == "leased", tasks.c.lease_expires_at > self.clock())
        with read(self.engine) as connection:
            return connection.execute(select(tasks.c.job).where(held).limit(1)).first() is not None

    def delete(self, job_id: str) -> None:
        """Forget a job; its files are the caller's to remove. Cancel it first if it is unfinished."""
        with write(self.engine) as connection:
            connection.execute(delete(tasks).where(tasks.c.job == job_id))
            connection.execute(delete(jobs).where(jobs.c.id == job_id))

    def queue_position(self, job: Job) -> int:
        """How many waiting jobs will be taken up before this one; 0 when it has begun or is next."""
        first = and_(tasks.c.position == 0, tasks.c.status == "ready")
        mine = select(*turn(), tasks.c.tenant).select_from(queue()).where(first, tasks.c.job == job.id)
        with read(self.engine) as connection:
            row = connection.execute(mine).first()
            if row is None:
                return 0
            ahead = select(func.count()).select_from(queue()).where(first, comes_before(row))
            return connection.execute(ahead).scalar_one()

    def _find_earlier(self, connection: Connection, new: NewJob) -> Job | None:
        same = [jobs.c.tenant == new.tenant]
        if new.idempotency_key is not None:
            same.append(jobs.c.idempotency_key == new.idempotency_key)
        elif new.replay_window_s > 0:
            same += [jobs.c.fingerprint == new.fingerprint, jobs.c.created_at > self.clock() - new.replay_window_s]
        else:
            return None
        latest = select(jobs.c.id, jobs.c.fingerprint).where(*same).order_by(jobs.c.created_at.desc()).limit(1)
        row = connection.execute(latest).first()
        if row is None:
            return None
        if row.fingerprint != new.fingerprint:
            raise ConflictError(
                f"idempotency key {new.idempotency_key!r} was used for another request (job {row.id}); use a new key"
            )
        return _job(connection, row.id)

    def _insert(self, connection: Connection, new: NewJob) -> str:
        now = self.clock()
        job_id = new.id
        rank = take_rank(connection, new, now)
        deadline_at = None if new.deadline_s is None else now + new.deadline_s
        connection.execute(
            insert(jobs).values(
                id=job_id,
                tenant=new.tenant,
                release=new.release,
                status="queued",
                request=new.request,
                fingerprint=new.fingerprint,
                idempotency_key=new.idempotency_key,
                parent=new.parent,
                priority=new.priority,
                cost=sum(spec.cost for spec in new.tasks),
                num_steps=sum(spec.num_steps for spec in new.tasks),
                created_at=now,
                deadline_at=deadline_at,
                results={},
                callback_url=new.callback_url,
            )
        )
        connection.execute(insert(tasks), [_task_row(job_id, i, s, new, rank) for i, s in enumerate(new.tasks)])
        return job_id


def end_job(
    connection: Connection,
    job_id: str,
    status: Status,
    now: float,
    *,
    code: str | None = None,
    message: str | None = None,
) -> bool:
    """Move an unfinished job to a final status, drop its waiting tasks and announce the end; False if it had ended.

    Tasks that a worker holds stay leased: the worker sees the job's status at its next step and lets go.
    """
    ended = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status.in_(UNFINISHED))
        .values(status=status, completed_at=now, error_code=code, error_message=message)
    )
    if ended.rowcount == 0:
        return False
    waiting = and_(tasks.c.job == job_id, tasks.c.status.in_(("waiting", "ready")))
    connection.execute(update(tasks).where(waiting).values(status="dropped"))
    announce(connection, job_id, status, now)
    return True


def announce(connection: Connection, job_id: str, status: Status, now: float) -> None:
    """Queue the webhook event of a job's end, if its caller asked for one."""
    job = connection.execute(select(jobs.c.callback_url, jobs.c.tenant).where(jobs.c.id == job_id)).one()
    if job.callback_url is not None:
        connection.execute(
            insert(deliveries).values(
                id=f"evt_{uuid.uuid4().hex[:32]}",
                job=job_id,
                tenant=job.tenant,
                type=WEBHOOK_TYPES[status],
                url=job.callback_url,
                created_at=now,
                attempts=0,
                next_at=now,
                delivered=False,
            )
        )


def _job(connection: Connection, job_id: str) -> Job | None:
    row = connection.execute(select(*_JOB_COLUMNS).where(jobs.c.id == job_id)).mappings().first()
    if row is None:
        return None
    done = connection.execute(
        select(tasks.c.stage, tasks.c.status, tasks.c.steps_done, tasks.c.duration_s).where(tasks.c.job == job_id)
    ).all()
    stages_s: dict[str, float] = {}
    for task in done:
        stages_s[task.stage] = stages_s.get(task.stage, 0.0) + task.duration_s
    steps_done = sum(task.steps_done for task in done)
    return Job(**row, steps_done=steps_done, stages_s=stages_s)


def _task_row(job_id: str, position: int, spec: TaskSpec, new: NewJob, rank: float) -> dict[str, Any]:
    return {
        "job": job_id,
        "position": position,
        "stage": spec.stage,
        "segment": spec.segment,
        "needs": list(spec.needs),
        "status": "waiting" if spec.needs else "ready",
        "tenant": new.tenant,
        "release": new.release,
        "priority": new.priority,
        "rank": rank,
        "cost": spec.cost,
        "num_steps": spec.num_steps,
        "steps_done": 0,
        "saved_steps": 0,
        "attempts": 0,
        "token": 0,
        "duration_s": 0.0,
    }


_JOB_COLUMNS = [jobs.c[name] for name in Job.__dataclass_fields__ if name in jobs.c]
