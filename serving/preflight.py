"""What can be wrong with an operator's arguments, found before anything slow is imported and anything is started."""

import socket

from pipelines.checkpoint import local_folder, read_manifest


def check_checkpoint(uri: str) -> None:
    """Read a checkpoint's manifest.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    read_manifest(local_folder(uri))


def check_port(host: str, port: int) -> None:
    """Try to listen.

    Raises:
        ValueError: somebody else does, or the host is not ours.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as err:
            raise ValueError(
                f"port {port} on {host} cannot be used: {err.strerror}; choose another with --port"
            ) from err
