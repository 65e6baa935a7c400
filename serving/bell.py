"""Doorbells: tell sleeping processes that the database has something for them. A lost ring costs a moment, never a job.

Beside SQLite (one machine) a bell is a Unix datagram socket; beside PostgreSQL it is LISTEN/NOTIFY.
"""

import contextlib
import hashlib
import os
import select
import socket
import tempfile
import uuid
from pathlib import Path
from typing import Protocol

import psycopg
from sqlalchemy.engine import make_url


class Bell(Protocol):
    """Something to wait at and to ring."""

    def ring(self, topic: str) -> None:
        """Wake whoever listens to `topic`; never waits and never fails."""

    def listen(self, topics: tuple[str, ...]) -> "Listener":
        """Start to listen; rings from now on are kept until the next wait."""


class Listener(Protocol):
    """One listening ear."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for a ring, at most `timeout_s`; rings that came in between answer at once. True if it rang."""

    def close(self) -> None:
        """Stop listening."""


def open_bell(database_url: str) -> Bell:
    """Make the bell that belongs to a database."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        name = hashlib.sha256(os.path.realpath(str(url.database)).encode()).hexdigest()[:12]
        # A socket's path is limited to 107 bytes, which a folder beside the database could exceed.
        return SocketBell(Path(tempfile.gettempdir()) / f"vldm-bell-{os.getuid()}-{name}")
    return PostgresBell(url.set(drivername="postgresql").render_as_string(hide_password=False))


class SocketBell:
    """Bells in a private folder: one datagram socket per listener and topic."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ring(self, topic: str) -> None:
        """Send a byte to each socket of the topic; sockets of dead processes are removed."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            for path in self._folder.glob(f"{topic}.*"):
                try:
                    sender.sendto(b"!", str(path))
                except (ConnectionRefusedError, FileNotFoundError):
                    path.unlink(missing_ok=True)
                except OSError:
                    # A full buffer: the listener has rings waiting, which is all that a ring is for.
                    continue

    def listen(self, topics: tuple[str, ...]) -> "SocketListener":
        """Open one socket per topic."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return SocketListener([self._folder / f"{topic}.{uuid.uuid4().hex[:12]}" for topic in topics])


class SocketListener:
    """Bound sockets, polled together."""

    def __init__(self, paths: list[Path]) -> None:
        self._sockets = {}
        for path in paths:
            ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            ear.bind(str(path))
            self._sockets[path] = ear

    def wait(self, timeout_s: float) -> bool:
        """Wait until any topic rings, then take all rings out."""
        ready, _, _ = select.select(list(self._sockets.values()), [], [], timeout_s)
        for ear in ready:
            with contextlib.suppress(BlockingIOError):
                while ear.recv(16):
                    pass
        return bool(ready)

    def close(self) -> None:
        """Close and remove the sockets."""
        for path, ear in self._sockets.items():
            ear.close()
            path.unlink(missing_ok=True)


class PostgresBell:
    """NOTIFY on one channel per topic, over connections that are renewed when the server was away."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sender: psycopg.Connection | None = None

    def ring(self, topic: str) -> None:
        """Notify; a server that is away has nobody to wake."""
        try:
            if self._sender is None or self._sender.closed:
                self._sender = psycopg.connect(self._url, autocommit=True, connect_timeout=2)
            self._sender.execute("SELECT pg_notify(%s, '')", (_channel(topic),))
        except psycopg.Error:
            self._sender = None

    def listen(self, topics: tuple[str, ...]) -> "PostgresListener":
        """Listen to the topics' channels."""
        return PostgresListener(self._url, topics)


class PostgresListener:
    """One listening connection."""

    def __init__(self, url: str, topics: tuple[str, ...]) -> None:
        self._url, self._topics = url, topics
        self._connection: psycopg.Connection | None = None

    def wait(self, timeout_s: float) -> bool:
        """Wait for a notification; while the server is away, sleep and say that nothing rang."""
        try:
            connection = self._connected()
            rang = bool(list(connection.notifies(timeout=timeout_s, stop_after=1)))
            return rang or bool(list(connection.notifies(timeout=0)))
        except psycopg.Error:
            self._connection = None
            select.select([], [], [], timeout_s)
            return False

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._url, autocommit=True, connect_timeout=2)
            for topic in self._topics:
                self._connection.execute(f'LISTEN "{_channel(topic)}"')
        return self._connection


def _channel(topic: str) -> str:
    return f"videoldm_{topic}"
