"""What the API stands on: the stores and the settings, opened once per process."""

import time
from dataclasses import dataclass

from serving.admission import seconds_until_done
from serving.artifacts import ArtifactStore
from serving.bell import Bell, open_bell
from serving.config import ServeConfig
from serving.database import open_database, read
from serving.jobs import JobStore
from serving.leases import WorkQueue
from serving.records import Job
from serving.releases import ReleaseStore
from serving.stage_set import StageSet
from serving.sweep import Sweeper
from serving.tenants import TenantStore


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The stores of one service."""

    config: ServeConfig
    stage_set: StageSet
    bell: Bell
    jobs: JobStore
    queue: WorkQueue
    tenants: TenantStore
    releases: ReleaseStore
    sweeper: Sweeper
    artifacts: ArtifactStore

    def eta_s(self, job: Job) -> float:
        """Estimate the seconds until a job is done: its own work and what goes before it."""
        if job.is_finished:
            return 0.0
        with read(self.jobs.engine) as connection:
            return seconds_until_done(connection, job.id, time.time())


def open_backend(config: ServeConfig, stage_set: StageSet, *, durable: bool) -> Backend:
    """Open the stores that a configuration names.

    Args:
        config: of the service.
        stage_set: what it serves.
        durable: whether commits wait for the disk; the API's do.
    """
    engine, bell = open_database(config.database_url, durable=durable), open_bell(config.database_url)
    worker = config.worker
    return Backend(
        config=config,
        stage_set=stage_set,
        bell=bell,
        jobs=JobStore(engine, bell),
        queue=WorkQueue(engine, bell, lease_s=worker.lease_s, max_attempts=worker.max_attempts),
        tenants=TenantStore(engine),
        releases=ReleaseStore(engine, bell),
        sweeper=Sweeper(engine, bell),
        artifacts=ArtifactStore(config.files_uri),
    )
