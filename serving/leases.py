"""What a worker can do with tasks: lease one, look at its controls, save its state, end it.

Every write names the lease's fencing token and changes nothing when the token is stale, so a worker that was given up
(killed, stopped, cut off) cannot disturb the one that took over.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, or_, select, update

from serving.bell import Bell
from serving.database import read, write
from serving.jobs import end_job
from serving.order import by_turn, comes_before, queue, turn
from serving.rates import learn_rate
from serving.records import UNFINISHED, Clock
from serving.tables import jobs, tasks, tenants


class LeaseLostError(Exception):
    """The task belongs to another worker now, or its job has ended."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A task in a worker's hands. `state` is the saved state to go on from; `inputs` are outputs of needed tasks."""

    job: str
    position: int
    token: int
    stage: str
    segment: int
    release: str
    request: dict[str, Any]
    num_steps: int
    steps_done: int
    state: str | None
    inputs: tuple[str, ...]
    created_at: float


@dataclass(frozen=True, kw_only=True)
class Control:
    """What a worker should know before its next step."""

    is_cancelled: bool
    is_overdue: bool
    is_preempted: bool


class WorkQueue:
    """The tasks that wait for workers. Safe to use from several threads and processes at once."""

    def __init__(
        self, engine: Engine, bell: Bell, *, lease_s: float, max_attempts: int, clock: Clock = time.time
    ) -> None:
        self.engine, self.bell, self.clock = engine, bell, clock
        self.lease_s, self.max_attempts = lease_s, max_attempts

    def lease(self, owner: str, stages: Sequence[str], releases: Sequence[str]) -> Lease | None:
        """Take the task whose turn it is among those this worker can run; None if there is none."""
        now = self.clock()
        if not self._has_work(stages, releases, now):
            return None
        chosen = (
            select(tasks)
            .select_from(queue())
            .where(_runnable(stages, releases, now))
            .order_by(*by_turn())
            .limit(1)
            .with_for_update(skip_locked=True, of=tasks)
        )
        with write(self.engine) as connection:
            row = connection.execute(chosen).first()
            if row is None:
                return None
            if connection.execute(select(jobs.c.status).where(jobs.c.id == row.job)).scalar_one() not in UNFINISHED:
                self._drop(connection, row.job, row.position, row.token)
                return None
            attempts = row.attempts + (row.status == "leased")
            if attempts >= self.max_attempts:
                message = (
                    f"stage {row.stage} lost its worker {attempts} times at step {row.saved_steps}; not tried again"
                )
                self._drop(connection, row.job, row.position, row.token)
                end_job(connection, row.job, "failed", now, code="worker_lost", message=message)
                return None
            connection.execute(
                update(tasks)
                .where(tasks.c.job == row.job, tasks.c.position == row.position)
                .values(
                    status="leased",
                    token=row.token + 1,
                    owner=owner,
                    leased_at=now,
                    lease_expires_at=now + self.lease_s,
                    attempts=attempts,
                )
            )
            return self._lease(connection, row, now)

    def look(self, lease: Lease, stages: Sequence[str], releases: Sequence[str]) -> Control:
        """Read the controls of a running task: one query, meant for every step.

        Raises:
            LeaseLostError: another worker has the task.
        """
        mine = (
            select(*turn(), tasks.c.token, jobs.c.status, jobs.c.deadline_at)
            .select_from(queue().join(jobs, jobs.c.id == tasks.c.job))
            .where(tasks.c.job == lease.job, tasks.c.position == lease.position)
        )
        now = self.clock()
        with read(self.engine) as connection:
            row = connection.execute(mine).first()
            if row is None or row.token != lease.token:
                raise LeaseLostError(f"job {lease.job} task {lease.position} was taken over")
            others = and_(_runnable(stages, releases, now), comes_before(row))
            rival = connection.execute(select(tasks.c.job).select_from(queue()).where(others).limit(1)).first()
        return Control(
            is_cancelled=row.status not in UNFINISHED,
            is_overdue=row.deadline_at is not None and now > row.deadline_at,
            is_preempted=rival is not None,
        )

    def renew(self, lease: Lease) -> None:
        """Prolong a lease; a stale one stays lost."""
        with write(self.engine) as connection:
            connection.execute(update(tasks).where(_held(lease)).values(lease_expires_at=self.clock() + self.lease_s))

    def report(self, lease: Lease, steps_done: int, *, preview: str | None = None) -> None:
        """Tell how far a task is, for those who watch."""
        with write(self.engine) as connection:
            connection.execute(update(tasks).where(_held(lease)).values(steps_done=steps_done))
            if preview is not None:
                connection.execute(update(jobs).where(jobs.c.id == lease.job).values(preview=preview))

    def save(self, lease: Lease, steps_done: int, state: str) -> None:
        """Record a state from which any worker can go on; progress makes earlier losses of workers forgotten.

        Raises:
            LeaseLostError: another worker has the task.
        """
        with write(self.engine) as connection:
            self._change(
                connection, lease, {"steps_done": steps_done, "saved_steps": steps_done, "state": state, "attempts": 0}
            )

    def give_back(self, lease: Lease, *, error: str | None = None, lost: str | None = None) -> None:
        """Let another worker go on from the last saved state (preemption, shutdown).

        Args:
            lease: the task.
            error: what went wrong, if that is why; after `max_attempts` errors without progress the job fails.
            lost: a file that it cannot read: whichever task made it starts anew.
        """
        stages = [lease.stage]
        with write(self.engine) as connection:
            self._charge(connection, lease)
            row = connection.execute(select(tasks.c.attempts).where(_held(lease))).first()
            attempts = (row.attempts if row else 0) + (error is not None)
            if attempts >= self.max_attempts:
                self._drop(connection, lease.job, lease.position, lease.token)
                message = f"stage {lease.stage} failed {attempts} times: {error}"
                end_job(connection, lease.job, "failed", self.clock(), code="stage_failed", message=message)
            else:
                status = "waiting" if lost in lease.inputs else "ready"
                free = {"status": status, "owner": None, "lease_expires_at": None, "attempts": attempts}
                was_ours = connection.execute(update(tasks).where(_held(lease)).values(free)).rowcount > 0
                if was_ours and lost is not None:
                    stages += self._start_anew(connection, lease.job, lost)
        for stage in stages:
            self.bell.ring(stage)

    def let_go(self, lease: Lease) -> None:
        """Stop working on a task whose job has ended."""
        with write(self.engine) as connection:
            self._charge(connection, lease)
            self._drop(connection, lease.job, lease.position, lease.token)

    def complete(self, lease: Lease, output: str, results: dict[str, Any] | None = None) -> None:
        """End a task, make ready what waited for it, and end its job with the last one.

        Args:
            lease: the task.
            output: where its output is stored.
            results: files that callers may fetch, by variant, to add to the job's.

        Raises:
            LeaseLostError: another worker has the task, or the job has ended; nothing was recorded.
        """
        now = self.clock()
        with write(self.engine) as connection:
            self._charge(connection, lease)
            task = connection.execute(select(tasks.c.duration_s, tasks.c.cost).where(_held(lease))).first()
            if task is not None and task.cost > 0:
                learn_rate(connection, lease.stage, task.duration_s / task.cost, now)
            self._change(
                connection, lease, {"status": "done", "output": output, "steps_done": lease.num_steps, "state": None}
            )
            stages = self._release_waiting(connection, lease.job)
            if results:
                known = connection.execute(select(jobs.c.results).where(jobs.c.id == lease.job)).scalar_one()
                connection.execute(update(jobs).where(jobs.c.id == lease.job).values(results={**known, **results}))
            left = select(func.count()).where(tasks.c.job == lease.job, tasks.c.status != "done")
            finished = connection.execute(left).scalar_one() == 0
            if finished and not end_job(connection, lease.job, "completed", now):
                raise LeaseLostError(f"job {lease.job} ended before its last task")
        for topic in stages or ["conductor"]:
            self.bell.ring(topic)

    def fail(self, lease: Lease, code: str, message: str) -> None:
        """End the job as failed: its work cannot succeed on any worker."""
        with write(self.engine) as connection:
            self._charge(connection, lease)
            self._drop(connection, lease.job, lease.position, lease.token)
            end_job(connection, lease.job, "failed", self.clock(), code=code, message=message)
        self.bell.ring("conductor")

    def _has_work(self, stages: Sequence[str], releases: Sequence[str], now: float) -> bool:
        # Looking first keeps idle workers from taking SQLite's one write lock.
        with read(self.engine) as connection:
            return (
                connection.execute(select(tasks.c.job).where(_runnable(stages, releases, now)).limit(1)).first()
                is not None
            )

    def _lease(self, connection: Connection, row: Any, now: float) -> Lease:
        started = and_(jobs.c.id == row.job, jobs.c.started_at.is_(None))
        connection.execute(update(jobs).where(started).values(started_at=now, status="in_progress"))
        job = connection.execute(select(jobs.c.request, jobs.c.created_at).where(jobs.c.id == row.job)).one()
        needed = and_(tasks.c.job == row.job, tasks.c.position.in_(row.needs))
        outputs = dict(connection.execute(select(tasks.c.position, tasks.c.output).where(needed)).tuples().all())
        same = ("job", "position", "stage", "segment", "release", "num_steps", "state")
        return Lease(
            **{name: getattr(row, name) for name in same},
            token=row.token + 1,
            steps_done=row.saved_steps,
            request=job.request,
            created_at=job.created_at,
            inputs=tuple(outputs[position] for position in row.needs),
        )

    def _start_anew(self, connection: Connection, job: str, lost: str) -> Sequence[str]:
        # A maker that runs makes the file anyway.
        idle = and_(tasks.c.job == job, tasks.c.status.in_(("ready", "done")))
        anew = {"status": "ready", "steps_done": 0, "saved_steps": 0, "state": None}
        maker = update(tasks).where(idle, or_(tasks.c.output == lost, tasks.c.state == lost))
        return connection.execute(maker.values(anew).returning(tasks.c.stage)).scalars().all()

    def _change(self, connection: Connection, lease: Lease, values: dict[str, Any]) -> None:
        if connection.execute(update(tasks).where(_held(lease)).values(values)).rowcount == 0:
            raise LeaseLostError(f"job {lease.job} task {lease.position} was taken over")

    def _drop(self, connection: Connection, job: str, position: int, token: int) -> None:
        mine = and_(tasks.c.job == job, tasks.c.position == position, tasks.c.token == token)
        connection.execute(update(tasks).where(mine).values(status="dropped", owner=None, lease_expires_at=None))

    def _charge(self, connection: Connection, lease: Lease) -> None:
        """Add the time since the lease began to the task's and the tenant's accounts."""
        row = connection.execute(select(tasks.c.leased_at, tasks.c.tenant).where(_held(lease))).first()
        if row is None:
            return
        spent_s = max(0.0, self.clock() - row.leased_at)
        connection.execute(update(tasks).where(_held(lease)).values(duration_s=tasks.c.duration_s + spent_s))
        service = tenants.c.virtual_time + spent_s / tenants.c.weight
        connection.execute(update(tenants).where(tenants.c.name == row.tenant).values(virtual_time=service))

    def _release_waiting(self, connection: Connection, job: str) -> list[str]:
        rows = connection.execute(
            select(tasks.c.position, tasks.c.status, tasks.c.needs, tasks.c.stage).where(tasks.c.job == job)
        ).all()
        done = {row.position for row in rows if row.status == "done"}
        ready = [row for row in rows if row.status == "waiting" and done.issuperset(row.needs)]
        for row in ready:
            mine = and_(tasks.c.job == job, tasks.c.position == row.position, tasks.c.status == "waiting")
            connection.execute(update(tasks).where(mine).values(status="ready"))
        return sorted({row.stage for row in ready})


def _held(lease: Lease) -> ColumnElement[bool]:
    mine = and_(tasks.c.job == lease.job, tasks.c.position == lease.position)
    return and_(mine, tasks.c.token == lease.token, tasks.c.status == "leased")


def _runnable(stages: Sequence[str], releases: Sequence[str], now: float) -> ColumnElement[bool]:
    lost = and_(tasks.c.status == "leased", tasks.c.lease_expires_at < now)
    kind = and_(tasks.c.stage.in_(stages), tasks.c.release.in_(releases))
    return and_(kind, or_(tasks.c.status == "ready", lost))
