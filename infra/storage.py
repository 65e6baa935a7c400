"""Files by URI: one set of atomic operations over local folders and S3.

A URI is a local path or `s3://bucket/key`. Credentials, region and endpoint come from the usual AWS variables of the
environment, never from a URI. Every write is atomic: a reader sees the old object, the new one or none.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError

STORE_ERRORS = (OSError, BotoCoreError)
"""What reading and writing raise when a disk is full or a store is out of reach."""

# The standard mode adds jitter and a retry quota to botocore's back-off; ten attempts outlast a burst of 503.
_S3_RETRIES: dict[str, Any] = {"retries": {"mode": "standard", "max_attempts": 10}}


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file found by `list_files`: its URI, its size and its path relative to the listed folder."""

    uri: str
    relative: str
    size_bytes: int


def is_remote(uri: str) -> bool:
    """Tell whether `uri` names an object store rather than a local path."""
    return "://" in uri


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Open the file system of `uri`.

    Returns:
        The file system and the path of `uri` on it.

    Raises:
        ValueError: if the scheme is neither a local path nor s3.
    """
    if uri.startswith("s3://"):
        # fsspec keeps instances by their arguments: named here, another endpoint gets another instance.
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        files = fsspec.filesystem("s3", endpoint_url=endpoint, config_kwargs=_S3_RETRIES)
        return files, uri.removeprefix("s3://").rstrip("/")
    if is_remote(uri):
        raise ValueError(f"uri {uri!r} has an unknown scheme; use a local path or s3://bucket/key")
    return fsspec.filesystem("file"), absolute(uri)


def absolute(uri: str) -> str:
    """Make a local path independent of the working folder; other URIs are as they are."""
    return uri if is_remote(uri) else str(Path(uri).expanduser().absolute())


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI."""
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    """Tell whether a file or folder is at `uri`; always asks the store."""
    files, path = filesystem(uri)
    files.invalidate_cache()
    return bool(files.exists(path))


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: if nothing is at `uri`.
    """
    files, path = filesystem(uri)
    return bytes(files.cat_file(path)) if is_remote(uri) else Path(path).read_bytes()


def list_files(uri: str, suffix: str = "") -> list[StoredFile]:
    """List the files below a folder, sorted by path, without folder markers; [] if the folder does not exist."""
    files, root = filesystem(uri)
    files.invalidate_cache()
    found = files.find(root, detail=True)
    return [
        StoredFile(uri=join(uri, relative), relative=relative, size_bytes=int(info["size"]))
        for path, info in sorted(found.items())
        if info["type"] == "file" and path.endswith(suffix) and (relative := path.removeprefix(root).lstrip("/"))
    ]


def write_atomic(uri: str, data: bytes, *, durable: bool = True) -> None:
    """Write or replace a file so that a reader, or a restart after a kill, never sees a part of it.

    Args:
        uri: where.
        data: the whole content.
        durable: wait for the disk. A power cut may otherwise leave a local file empty or torn.
    """
    files, path = filesystem(uri)
    if is_remote(uri):
        files.pipe_file(path, data)
        return
    with _local_temporary(path) as temporary:
        _fill(temporary, data)
        if durable:
            _fsync(temporary)
        temporary.replace(path)
        if durable:
            _fsync(Path(path).parent)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file only if there is none yet; of several writers exactly one wins.

    Returns:
        True if this call wrote it, False if it was there already.
    """
    files, path = filesystem(uri)
    try:
        if is_remote(uri):
            files.pipe_file(path, data, mode="create")
            return True
        with _local_temporary(path) as temporary:
            temporary.write_bytes(data)
            _fsync(temporary)
            os.link(temporary, path)
            _fsync(Path(path).parent)
        return True
    except FileExistsError:
        return False
    except OSError as err:
        # S3 answers a failed If-None-Match with 412, which s3fs maps to a plain OSError.
        if "PreconditionFailed" in str(err) or "pre-conditions" in str(err):
            return False
        raise


def publish(local: Path, uri: str) -> None:
    """Move a finished local file to `uri` atomically; `local` is gone afterwards."""
    files, path = filesystem(uri)
    if is_remote(uri):
        files.put_file(str(local), path)
        local.unlink()
        return
    with _local_temporary(path) as temporary:
        if os.stat(local).st_dev == os.stat(temporary.parent).st_dev:
            local.replace(temporary)
        else:
            temporary.write_bytes(local.read_bytes())
            local.unlink()
        os.chmod(temporary, _published_mode())
        _fsync(temporary)
        temporary.replace(path)
        _fsync(Path(path).parent)


def delete(uri: str, *, recursive: bool = False) -> None:
    """Delete a file (or, with `recursive`, a folder); nothing happens if it is not there."""
    files, path = filesystem(uri)
    with suppress(FileNotFoundError):
        files.rm(path, recursive=recursive)


def sha256_of(path: Path) -> str:
    """Digest of a local file as 64 hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _local_temporary(path: str) -> Iterator[Path]:
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=folder)
    os.close(descriptor)
    # mkstemp makes files private to the user; published files follow the umask like any other.
    os.chmod(name, _published_mode())
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _fill(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        if data:
            # Room for all of it at once: a full disk shows early, and writing takes two thirds of the time.
            os.posix_fallocate(file.fileno(), 0, len(data))
        file.write(data)


def _published_mode() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
