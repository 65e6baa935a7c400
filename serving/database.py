"""One database on two engines: SQLite beside the service on one machine, PostgreSQL under a cluster."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import alembic.command
import alembic.config
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

Result = TypeVar("Result")

_MIGRATION_LOCK = 0x76_6C_64_6D
_ADMISSION_LOCK = _MIGRATION_LOCK + 1


def check_database(url: str) -> None:
    """Look at the kind of a database.

    Raises:
        ValueError: one that cannot hold jobs.
    """
    kind = make_url(url).get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise ValueError(
            f"database {url!r} is of kind {kind!r}; use sqlite:////path/jobs.db or postgresql+psycopg://..."
        )


def open_database(url: str, *, durable: bool) -> Engine:
    """Connect to the job database, making the folder of an SQLite file if it is not there.

    Args:
        url: `sqlite:////path/jobs.db` or `postgresql+psycopg://user:password@host/name`.
        durable: wait for the disk at each commit. The API accepts jobs this way; workers need not, since losing the
            last moments of a stage costs recomputation only. (PostgreSQL always waits.)

    Raises:
        ValueError: the URL names another kind of database.
    """
    check_database(url)
    if make_url(url).get_backend_name() == "sqlite":
        return _open_sqlite(url, durable)
    return create_engine(url, pool_pre_ping=True, pool_size=4, max_overflow=16)


def _open_sqlite(url: str, durable: bool) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise ValueError(
            f"database {url!r} lives in memory, but several processes share it; use sqlite:////path/jobs.db"
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 30.0, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # We open transactions ourselves: the driver would start them late, as readers, and fail on the first write.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", f"synchronous={'FULL' if durable else 'NORMAL'}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def migrate(url: str) -> None:
    """Bring the tables up to date; several processes may call it at once."""
    engine = open_database(url, durable=True)
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect() as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")
    engine.dispose()


@contextlib.contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that may write; SQLite takes its one write lock at once."""
    with engine.begin() as connection:
        yield connection


@contextlib.contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that only reads; never waits for a writer."""
    with engine.connect().execution_options(begin="DEFERRED") as connection, connection.begin():
        yield connection


def take_admission_lock(connection: Connection) -> None:
    """Let one create run at a time, so that the queue bound is exact. SQLite's write lock already does so."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADMISSION_LOCK})


def retry(action: Callable[[], Result], *, patience_s: float, pause: Callable[[float], object] = time.sleep) -> Result:
    """Run `action` again while the database is away (restarting, failing over, locked).

    Args:
        action: one whole transaction; it runs again from its start.
        patience_s: how long to go on before the error is raised.
        pause: how to wait, in seconds.
    """
    give_up_at = time.monotonic() + patience_s
    wait_s = 0.05
    while True:
        try:
            return action()
        except (OperationalError, InterfaceError, DBAPIError) as error:
            away = isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
            if not away or time.monotonic() + wait_s > give_up_at:
                raise
        pause(wait_s)
        wait_s = min(2 * wait_s, 1.0)
