"""The child side of `preprocessing.sandbox`: `python -m preprocessing.sandbox_child FD MEMORY_BYTES`."""

import importlib
import pickle
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

from pipelines.memory import keep_freed_memory
from pipelines.video_decode import VideoError


def serve(connection: Connection) -> None:
    """Run requests until the parent goes away."""
    while True:
        try:
            module, name, arguments = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        _send(connection, _run(connection, module, name, arguments))


def _run(connection: Connection, module: str, name: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        for item in getattr(importlib.import_module(module), name)(*arguments):
            _send(connection, ("item", item))
    except VideoError as err:
        return "error", (err.reason, str(err))
    except MemoryError:
        return "error", ("memory", "decoding needs more memory than allowed")
    except OSError as err:
        return "error", ("memory" if err.errno == 12 else "io", str(err))
    except Exception as err:
        return "error", ("decode", f"{type(err).__name__}: {err}")
    return "done", None


def _send(connection: Connection, message: tuple[str, Any]) -> None:
    # Frames follow as they are: pickled, each would be copied twice more.
    arrays: list[pickle.PickleBuffer] = []
    connection.send_bytes(pickle.dumps(message, protocol=5, buffer_callback=arrays.append))
    connection.send(len(arrays))
    for array in arrays:
        connection.send_bytes(array.raw())


if __name__ == "__main__":
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # A crash of a decoder is an expected event; it leaves a quarantine row and no core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep_freed_memory()
    serve(Connection(int(sys.argv[1])))
