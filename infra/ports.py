"""A port for a server of this machine that is about to start."""

import random
import socket
from contextlib import suppress

# Below it lie the ports of Ray's workers, above it those that the system gives to outgoing connections.
_FREE = range(20_000, 32_768)


def free_port() -> int:
    """Find a loopback port that nobody listens on, and that nobody is given without asking for it.

    Raises:
        OSError: all ports that were tried are taken.
    """
    for port in random.SystemRandom().sample(_FREE, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port among 100 between {_FREE.start} and {_FREE.stop - 1}; end the servers that hold them")
