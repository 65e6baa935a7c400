"""Counters that outlive their process: workers gather figures in memory and add them to the database now and then."""

import threading
from collections import defaultdict

from sqlalchemy import Engine, insert, update

from serving.database import write
from serving.tables import counters


class Counters:
    """Sums and counts by name and stage."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._gathered: dict[tuple[str, str], tuple[int, float]] = defaultdict(lambda: (0, 0.0))

    def __call__(self, name: str, value: float, stage: str) -> None:
        """Add a figure."""
        with self._lock:
            count, total = self._gathered[name, stage]
            self._gathered[name, stage] = (count + 1, total + value)

    def flush(self) -> None:
        """Write what was gathered since the last time."""
        with self._lock:
            gathered, self._gathered = self._gathered, defaultdict(lambda: (0, 0.0))
        if not gathered:
            return
        with write(self._engine) as connection:
            for (name, stage), (count, total) in gathered.items():
                mine = (counters.c.name == name) & (counters.c.stage == stage)
                sums = {"count": counters.c.count + count, "total": counters.c.total + total}
                if connection.execute(update(counters).where(mine).values(sums)).rowcount == 0:
                    connection.execute(insert(counters).values(name=name, stage=stage, count=count, total=total))
