"""Who gets in: the bounds of the queue, each tenant's quota, the place in line, and when to try again."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Float, and_, case, cast, func, or_, select, update

from serving.rates import DEFAULT_RATE, rate_of
from serving.records import UNFINISHED, Bounds, NewJob, QueueFullError
from serving.tables import jobs, loads, rates, tasks, tenants

# How much longer than its own work a job may be kept waiting by shorter ones before it goes first.
_PATIENCE = 4.0
# A worker that has not been heard of for this long does not count as help.
_WORKER_ALIVE_S = 30.0
_DAY_S = 86400.0


_UNFINISHED = select(func.count()).select_from(jobs).where(jobs.c.status.in_(UNFINISHED))


def is_full(connection: Connection, bounds: Bounds) -> bool:
    """Whether the service has all the unfinished jobs that it takes in."""
    return connection.execute(_UNFINISHED).scalar_one() >= bounds.max_unfinished


def check_room(connection: Connection, new: NewJob, bounds: Bounds, now: float) -> None:
    """Refuse a job for which the service or its tenant has no room.

    Raises:
        QueueFullError: with an estimate of when there is room.
    """
    if is_full(connection, bounds):
        raise QueueFullError("the service is full", seconds_per_job(connection, now), is_everybodys=True)
    tenant = connection.execute(select(tenants).where(tenants.c.name == new.tenant)).one()
    if connection.execute(_UNFINISHED.where(jobs.c.tenant == new.tenant)).scalar_one() >= tenant.max_unfinished:
        wait_s = seconds_per_job(connection, now)
        raise QueueFullError(f"this key may have {tenant.max_unfinished} unfinished jobs; wait for one to end", wait_s)
    today = (jobs.c.tenant == new.tenant) & (jobs.c.created_at > now - _DAY_S)
    spent = connection.execute(select(func.coalesce(func.sum(jobs.c.cost), 0.0)).where(today)).scalar_one()
    cost = sum(spec.cost for spec in new.tasks)
    if spent + cost > tenant.daily_cost:
        message = f"this job costs {cost:g} and this key has {max(tenant.daily_cost - spent, 0.0):g} left today"
        oldest = connection.execute(select(func.min(jobs.c.created_at)).where(today)).scalar_one()
        raise QueueFullError(message, _DAY_S if oldest is None else oldest + _DAY_S - now)


def take_rank(connection: Connection, new: NewJob, now: float) -> float:
    """Place the job among its tenant's (short work before long, old before new) and wake the tenant."""
    work_s = sum(spec.cost * rate_of(connection, spec.stage) for spec in new.tasks)
    mine = tenants.c.name == new.tenant
    unfinished = select(jobs.c.tenant).where(jobs.c.status.in_(UNFINISHED))
    if connection.execute(unfinished.where(jobs.c.tenant == new.tenant).limit(1)).first() is None:
        # Time not used is not saved up: a tenant that comes back starts level with the least served one.
        active = select(func.min(tenants.c.virtual_time)).where(tenants.c.name.in_(unfinished))
        level = connection.execute(active).scalar_one()
        if level is not None:
            behind = tenants.c.virtual_time < level
            connection.execute(update(tenants).where(mine, behind).values(virtual_time=level))
    return now + _PATIENCE * work_s


def seconds_per_job(connection: Connection, now: float) -> float:
    """Estimate the time between two finished jobs: mean work at the busiest stage, shared by its workers."""
    num_jobs = max(1, connection.execute(_UNFINISHED).scalar_one())
    loads_by_stage = _loads(connection, now)
    return max((load.work_s / num_jobs / load.workers for load in loads_by_stage), default=DEFAULT_RATE)


def seconds_until_done(connection: Connection, job: str, now: float) -> float:
    """Estimate when a job is done: its own work, and that of waiting jobs which go before it, at the busiest stage."""
    mine = select(tasks.c.priority, tasks.c.rank).where(tasks.c.job == job).limit(1)
    row = connection.execute(mine).first()
    if row is None:
        return 0.0
    sooner = or_(tasks.c.priority > row.priority, and_(tasks.c.priority == row.priority, tasks.c.rank <= row.rank))
    loads_by_stage = _loads(connection, now, sooner, job)
    return max([sum(load.own_s for load in loads_by_stage), *(load.work_s / load.workers for load in loads_by_stage)])


@dataclass(frozen=True, kw_only=True)
class _Load:
    """Seconds of work left at a stage, those of one job among them, and the number of workers."""

    work_s: float
    own_s: float
    workers: int


def _loads(connection: Connection, now: float, which: ColumnElement[bool] | None = None, job: str = "") -> list[_Load]:
    left = tasks.c.cost * (1.0 - cast(tasks.c.steps_done, Float) / tasks.c.num_steps)
    own = case((tasks.c.job == job, left), else_=0.0)
    rate = func.coalesce(func.max(rates.c.seconds_per_cost), DEFAULT_RATE)
    work = (
        select(tasks.c.stage, (func.sum(left) * rate).label("work_s"), (func.sum(own) * rate).label("own_s"))
        .select_from(tasks.outerjoin(rates, rates.c.stage == tasks.c.stage))
        .where(tasks.c.status.in_(("waiting", "ready", "leased")))
        .group_by(tasks.c.stage)
    )
    if which is not None:
        work = work.where(which)
    alive = select(loads.c.owner, loads.c.stages).where(loads.c.seen_at > now - _WORKER_ALIVE_S).distinct()
    helpers = [set(row.stages.split(",")) for row in connection.execute(alive).all()]
    return [
        _Load(work_s=row.work_s, own_s=row.own_s, workers=max(1, sum(row.stage in stages for stages in helpers)))
        for row in connection.execute(work).all()
    ]
