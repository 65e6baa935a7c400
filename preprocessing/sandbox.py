"""Run decoding in a child process with limits: a crash, a hang or a bomb costs one source, not the job."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from socket import socketpair
from typing import Any


class SandboxError(Exception):
    """Work in the child failed.

    Attributes:
        reason: what a VideoError said, or crash, timeout, memory, io.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Sandbox:
    """A child process that runs module-level generator functions; started when first needed, replaced when it dies.

    Args:
        memory_bytes: address space the child may use.
        timeout_s: longest silence; each result sets the clock back.
    """

    def __init__(self, *, memory_bytes: int, timeout_s: float) -> None:
        self.memory_bytes, self.timeout_s = memory_bytes, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def stream(self, function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
        """Run a function in the child and hand on what it yields.

        Raises:
            SandboxError: if the function raises, the child dies, or nothing comes for `timeout_s`.
        """
        connection = self._started()
        finished = False
        try:
            connection.send_bytes(pickle.dumps((function.__module__, function.__name__, arguments)))
            while True:
                if not connection.poll(self.timeout_s):
                    raise SandboxError("timeout", f"no result within {self.timeout_s:g} s")
                kind, value = _receive(connection)
                if kind == "item":
                    yield value
                    continue
                finished = True
                if kind == "error":
                    raise SandboxError(*value)
                return
        except (EOFError, ConnectionError) as err:
            code = self._process.wait(10) if self._process else None
            raise SandboxError("crash", f"the decoder process died with code {code}") from err
        finally:
            if not finished:
                self.close()

    def close(self) -> None:
        """End the child."""
        if self._process:
            self._process.kill()
            self._process.wait()
        if self._connection:
            self._connection.close()
        self._process = self._connection = None

    def _started(self) -> Connection:
        if self._connection is None or self._process is None or self._process.poll() is not None:
            self.close()
            ours, theirs = socketpair()
            command = [
                sys.executable,
                "-m",
                "preprocessing.sandbox_child",
                str(theirs.fileno()),
                str(self.memory_bytes),
            ]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            theirs.close()
            self._connection = Connection(ours.detach())
        return self._connection


def _receive(connection: Connection) -> tuple[str, Any]:
    message = connection.recv_bytes()
    arrays = [connection.recv_bytes() for _ in range(connection.recv())]
    return pickle.loads(message, buffers=arrays)
