"""How many replicas a worker pool should have: as many as there are tasks for it, within its bounds.

Work is pulled from the database, so Serve's own count of requests says nothing; the queue does. The class is run by
Serve's controller, by value, so it imports what it needs when it is made.
"""

from typing import Any


class QueueDepth:
    """Autoscaling policy: one replica per task that waits or runs."""

    def __init__(self, database_url: str, stages: list[str]) -> None:
        from serving.database import open_database  # noqa: PLC0415

        self._engine = open_database(database_url, durable=False)
        self._stages = stages

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the wanted number of replicas; while the database is away, the present one."""
        from sqlalchemy import func, select  # noqa: PLC0415
        from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

        from serving.database import read  # noqa: PLC0415
        from serving.tables import tasks  # noqa: PLC0415

        mine = tasks.c.stage.in_(self._stages) & tasks.c.status.in_(("ready", "leased"))
        try:
            with read(self._engine) as connection:
                depth = connection.execute(select(func.count()).select_from(tasks).where(mine)).scalar_one()
        except DBAPIError:
            return context.target_num_replicas, {}
        lowest, highest = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(lowest, min(highest, depth)), {}
