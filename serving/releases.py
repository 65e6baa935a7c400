"""Which checkpoint answers: a release is a checkpoint the service was told to serve.

A rollout adds a candidate. Workers load it beside what they serve; when every stage has a worker that holds it, it
becomes active and new jobs go to it, while jobs accepted earlier end on the release they were accepted for. A
candidate that cannot be loaded fails and changes nothing.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from serving.bell import Bell
from serving.database import read, write
from serving.records import UNFINISHED, Clock
from serving.tables import jobs, loads, releases

# A worker that dies while loading is restarted and tries again, this often.
_MAX_LOAD_ATTEMPTS = 3
_WORKER_ALIVE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Release:
    """A checkpoint by the digest of its content, with what the API must know of it."""

    digest: str
    uri: str
    status: Literal["candidate", "active", "retired", "failed"]
    error: str | None
    description: dict[str, Any]


class ReleaseStore:
    """Releases in the job database."""

    def __init__(self, engine: Engine, bell: Bell, clock: Clock = time.time) -> None:
        self.engine, self.bell, self.clock = engine, bell, clock
        self._names: dict[str, str] = {}

    def propose(self, digest: str, uri: str, description: dict[str, Any]) -> Release:
        """Begin the rollout of a checkpoint; one that failed or retired earlier is tried afresh."""
        row = {"uri": uri, "status": "candidate", "error": None, "description": description}
        mine = releases.c.digest == digest
        with write(self.engine) as connection:
            connection.execute(update(releases).where(releases.c.status == "candidate").values(status="retired"))
            known = connection.execute(select(releases.c.status).where(mine)).first()
            if known is None:
                connection.execute(insert(releases).values(digest=digest, created_at=self.clock(), **row))
            elif known.status != "active":
                connection.execute(delete(loads).where(loads.c.release == digest, loads.c.status != "ready"))
                connection.execute(update(releases).where(mine).values(row))
            release = _release(connection.execute(select(releases).where(mine)).one())
        self.bell.ring("workers")
        return release

    def get(self, digest: str) -> Release | None:
        """Look a release up."""
        with read(self.engine) as connection:
            row = connection.execute(select(releases).where(releases.c.digest == digest)).first()
        return _release(row) if row else None

    def name(self, digest: str) -> str:
        """Name of a release, which its digest covers; asked for with every look at a job."""
        if digest not in self._names:
            release = self.get(digest)
            self._names[digest] = release.description["name"] if release else ""
        return self._names[digest]

    def active(self) -> Release | None:
        """The release that new jobs go to; None before the first one is loaded."""
        with read(self.engine) as connection:
            row = connection.execute(select(releases).where(releases.c.status == "active")).first()
        return _release(row) if row else None

    def wanted(self) -> list[Release]:
        """Releases that workers should hold: candidate, active, and retired ones with unfinished jobs."""
        with read(self.engine) as connection:
            pending = select(jobs.c.release).where(jobs.c.status.in_(UNFINISHED))
            wanted = releases.c.status.in_(("candidate", "active")) | releases.c.digest.in_(pending)
            return [_release(row) for row in connection.execute(select(releases).where(wanted)).all()]

    def begin_load(self, digest: str, owner: str, stages: Iterable[str]) -> None:
        """Record that a worker is about to load a release; the record outlives a crash in loading."""
        self._record(digest, owner, stages, "loading", None)

    def end_load(self, digest: str, owner: str, stages: Iterable[str], error: str | None) -> None:
        """Record that a worker holds a release, or could not load it, and draw the consequence for a candidate."""
        self._record(digest, owner, stages, "ready" if error is None else "failed", error)
        self.bell.ring("conductor")

    def is_alive(self, owner: str) -> None:
        """Record that a worker lives."""
        with write(self.engine) as connection:
            connection.execute(update(loads).where(loads.c.owner == owner).values(seen_at=self.clock()))

    def forget(self, owner: str, digest: str | None = None) -> None:
        """Record that a worker has let go of a release, or (without a digest) ended."""
        mine = loads.c.owner == owner
        with write(self.engine) as connection:
            connection.execute(delete(loads).where(mine if digest is None else mine & (loads.c.release == digest)))

    def advance(self, stages: Iterable[str]) -> Release | None:
        """Decide about the candidate: active when workers of all its stages hold it, failed when it cannot be loaded.

        Args:
            stages: that there are workers for; a candidate that names the stages it runs needs those of them only.

        Returns:
            The release whose status changed, if any.
        """
        now = self.clock()
        with write(self.engine) as connection:
            stale = loads.c.status.in_(("ready", "failed")) & (loads.c.seen_at < now - 10 * _WORKER_ALIVE_S)
            connection.execute(delete(loads).where(stale))
            row = connection.execute(select(releases).where(releases.c.status == "candidate")).first()
            if row is None:
                return None
            needed = set(stages) & set(row.description.get("runs", stages))
            status, error = _verdict(connection, row.digest, needed, now)
            if status == "candidate":
                return None
            if status == "active":
                connection.execute(update(releases).where(releases.c.status == "active").values(status="retired"))
            mine = releases.c.digest == row.digest
            connection.execute(update(releases).where(mine).values(status=status, error=error))
            return _release(connection.execute(select(releases).where(mine)).one())

    def _record(self, digest: str, owner: str, stages: Iterable[str], status: str, error: str | None) -> None:
        values = {"stages": ",".join(sorted(stages)), "status": status, "error": error, "seen_at": self.clock()}
        mine = (loads.c.release == digest) & (loads.c.owner == owner)
        with write(self.engine) as connection:
            if connection.execute(update(loads).where(mine).values(values)).rowcount == 0:
                connection.execute(insert(loads).values(release=digest, owner=owner, **values))


def _verdict(connection: Connection, digest: str, stages: set[str], now: float) -> tuple[str, str | None]:
    mine = loads.c.release == digest
    failed = connection.execute(select(loads.c.error).where(mine, loads.c.status == "failed").limit(1)).first()
    if failed is not None:
        return "failed", failed.error
    crashed = mine & (loads.c.status == "loading") & (loads.c.seen_at < now - _WORKER_ALIVE_S)
    crashes = connection.execute(select(func.count()).select_from(loads).where(crashed)).scalar_one()
    if crashes >= _MAX_LOAD_ATTEMPTS:
        return "failed", f"{crashes} workers died while loading it"
    ready = select(loads.c.stages).where(mine, loads.c.status == "ready", loads.c.seen_at > now - _WORKER_ALIVE_S)
    held = {stage for row in connection.execute(ready).all() for stage in row.stages.split(",")}
    return ("active" if stages <= held else "candidate"), None


def _release(row: Any) -> Release:
    return Release(digest=row.digest, uri=row.uri, status=row.status, error=row.error, description=row.description)
