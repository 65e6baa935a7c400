"""What the conductor does about jobs nobody works on: deadlines passed, leases run out, results kept too long."""

import time

from sqlalchemy import Engine, and_, select, update

from serving.bell import Bell
from serving.database import read, write
from serving.jobs import end_job
from serving.records import UNFINISHED, Clock
from serving.tables import jobs, tasks


class Sweeper:
    """Housekeeping of the job tables. Several may run at once; each change is made by one of them."""

    def __init__(self, engine: Engine, bell: Bell, clock: Clock = time.time) -> None:
        self.engine, self.bell, self.clock = engine, bell, clock

    def end_overdue(self) -> list[str]:
        """Fail unfinished jobs whose deadline has passed; returns their ids."""
        now = self.clock()
        late = and_(jobs.c.status.in_(UNFINISHED), jobs.c.deadline_at < now)
        with read(self.engine) as connection:
            found = connection.execute(select(jobs.c.id, jobs.c.created_at, jobs.c.deadline_at).where(late)).all()
        for row in found:
            message = f"not finished within deadline_s={row.deadline_at - row.created_at:g}"
            with write(self.engine) as connection:
                end_job(connection, row.id, "failed", now, code="deadline_exceeded", message=message)
        return [row.id for row in found]

    def drop_orphans(self) -> None:
        """Drop tasks of ended jobs whose worker died, and wake workers for those of living ones."""
        lost = and_(tasks.c.status == "leased", tasks.c.lease_expires_at < self.clock())
        with read(self.engine) as connection:
            query = select(tasks.c.job, tasks.c.position, tasks.c.stage, jobs.c.status).join(jobs).where(lost)
            found = connection.execute(query).all()
        for row in found:
            if row.status in UNFINISHED:
                self.bell.ring(row.stage)
                continue
            with write(self.engine) as connection:
                mine = and_(tasks.c.job == row.job, tasks.c.position == row.position)
                connection.execute(update(tasks).where(mine, lost).values(status="dropped", owner=None))

    def expired(self, retention_s: float, limit: int = 100) -> list[str]:
        """Ids of finished jobs that have been kept for `retention_s`."""
        old = and_(jobs.c.completed_at < self.clock() - retention_s, jobs.c.status.not_in(UNFINISHED))
        with read(self.engine) as connection:
            return list(connection.execute(select(jobs.c.id).where(old).limit(limit)).scalars().all())
