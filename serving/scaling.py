"""How many replicas a worker pool should have: as many as there are tasks for it, within its bounds.

A pool whose stages no checkpoint of the service has needs none. One that sleeps is woken for a new checkpoint, which
becomes active only when every pool that it needs has loaded it.

Work is pulled from the database, so Serve's own count of requests says nothing; the queue does. The class is run by
Serve's controller, by value, so it imports what it needs when it is made.
"""

from typing import Any


class QueueDepth:
    """Autoscaling policy: one replica per task that waits or runs, at least `lowest` if a checkpoint needs the pool."""

    def __init__(self, database_url: str, stages: list[str], lowest: int) -> None:
        from serving.database import open_database  # noqa: PLC0415

        self._engine = open_database(database_url, durable=False)
        self._stages, self._lowest = stages, lowest

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the wanted number of replicas; while the database is away, the present one."""
        from sqlalchemy import func, select  # noqa: PLC0415
        from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

        from serving.database import read  # noqa: PLC0415
        from serving.tables import releases, tasks  # noqa: PLC0415

        mine = tasks.c.stage.in_(self._stages) & tasks.c.status.in_(("ready", "leased"))
        try:
            with read(self._engine) as connection:
                depth = connection.execute(select(func.count()).select_from(tasks).where(mine)).scalar_one()
                query = select(releases.c.status, releases.c.description)
                known = connection.execute(query.where(releases.c.status.in_(("candidate", "active")))).all()
        except DBAPIError:
            return context.target_num_replicas, {}
        needing = [
            row.status for row in known if not {*row.description.get("runs", self._stages)}.isdisjoint(self._stages)
        ]
        lowest = max(self._lowest, int("candidate" in needing)) if needing else 0
        return max(lowest, min(context.capacity_adjusted_max_replicas, depth)), {}
