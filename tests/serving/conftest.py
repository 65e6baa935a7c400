import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from infra.ports import free_port
from serving.bell import open_bell
from serving.database import migrate, open_database, write
from serving.jobs import JobStore
from serving.leases import WorkQueue
from serving.records import Bounds, Job, NewJob, TaskSpec
from serving.tables import metadata, releases
from serving.tenants import Quota, TenantStore


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Postgres:
    """A PostgreSQL server of our own on a free loopback port."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries, self.folder = binaries, folder
        # The server refuses to run as root; Debian's package brings the user `postgres`.
        self.user = "postgres" if os.getuid() == 0 else None
        self.port = free_port()
        if self.user:
            shutil.chown(folder, self.user)
        self._run("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-N")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-o", options, "-l", f"{self.folder}/log", "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", mode, "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.binaries / program), *arguments]
        subprocess.run(command, check=True, user=self.user, cwd=self.folder, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not folders and os.environ.get("VIDEOLDM_REQUIRE_PEERS"):
        pytest.fail("no PostgreSQL server on this machine, and VIDEOLDM_REQUIRE_PEERS is set")
    if not folders:
        pytest.skip("no PostgreSQL server on this machine; apt-get install postgresql to run this test")
    with tempfile.TemporaryDirectory(prefix="vldm-pg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = Postgres(folders[0], Path(folder))
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                server.stop()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/jobs.db"
    else:
        url = request.getfixturevalue("postgres").url
        engine = open_database(url, durable=True)
        with engine.begin() as connection:
            metadata.drop_all(connection)
            connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
        engine.dispose()
    migrate(url)
    return url


class Service:
    """A job store with one release and one tenant, and the clock that rules it."""

    def __init__(self, url: str) -> None:
        self.url, self.clock = url, Clock()
        self.engine, self.bell = open_database(url, durable=False), open_bell(url)
        self.jobs = JobStore(self.engine, self.bell, self.clock)
        self.queue = WorkQueue(self.engine, self.bell, lease_s=10.0, max_attempts=3, clock=self.clock)
        self.tenants = TenantStore(self.engine, self.clock)
        self.tenants.anonymous(Quota())
        with write(self.engine) as connection:
            row = {"digest": "r1", "uri": "/checkpoint", "status": "active", "description": {}, "created_at": 0.0}
            connection.execute(insert(releases).values(row))

    def submit(self, *, steps: int = 5, bound: int = 1000, **changes: object) -> Job:
        """Store a job of two tasks: `paint` of so many steps, then `show`."""
        specs = (
            TaskSpec(stage="paint", segment=0, needs=(), num_steps=steps, cost=float(steps)),
            TaskSpec(stage="show", segment=0, needs=(0,), num_steps=1, cost=1.0),
        )
        fields = {
            "id": f"video_{uuid.uuid4().hex}",
            "tenant": "anonymous",
            "release": "r1",
            "request": {"prompt": "a road"},
            "fingerprint": "f",
            "tasks": specs,
            **changes,
        }
        return self.jobs.create(NewJob(**fields), Bounds(max_unfinished=bound))[0]  # type: ignore[arg-type]

    def close(self) -> None:
        self.engine.dispose()


@pytest.fixture
def service(database_url: str) -> Iterator[Service]:
    service = Service(database_url)
    yield service
    service.close()
