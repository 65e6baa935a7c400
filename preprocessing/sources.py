"""Find the sources of a corpus: a folder, an S3 prefix, a list of addresses, or a manifest with captions and labels."""

import csv
import hashlib
import io
import json
import logging
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage

logger = logging.getLogger(__name__)

SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp",
    ".ogv", ".mxf", ".y4m",
))  # fmt: skip
SYNTHETIC_LABELS = "labels.parquet"
FETCH_ATTEMPTS = 3
RETRY_PAUSE_S = 2.0
MANIFESTS = (".parquet", ".csv", ".jsonl", ".txt")
_LOCATION = ("uri", "url", "path", "file", "video")
_OWN = frozenset((*_LOCATION, "caption", "night", "crowdedness", "licence", "license", "consent", "size_bytes"))


@dataclass(frozen=True, kw_only=True)
class Source:
    """One video file before it has been looked at.

    Attributes:
        uri: where it lies.
        name: its path within the corpus; unique.
        size_bytes: its size, -1 if unknown.
        caption: text, empty if there is none.
        night, crowdedness: labels of the whole source, None if unknown.
        labels: further numbers known of it.
        licence: None if unknown.
        consent: False forbids its use.
    """

    uri: str
    name: str
    size_bytes: int
    caption: str = ""
    night: int | None = None
    crowdedness: int | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    licence: str | None = None
    consent: bool = True


def find_sources(corpus: str) -> list[Source]:
    """List the sources of a corpus, sorted by name.

    Args:
        corpus: folder or `s3://` prefix (searched in depth for video files; the labels file of a synthetic corpus is
            joined), or a manifest (local, `s3://`, `http://`): Parquet, CSV or JSON lines with a column uri, url, path,
            file or video, or a text file with one address a line; what is relative lies beside the manifest.

    Raises:
        ValueError: if there is no corpus, it holds no videos, or a name is listed twice.
    """
    is_manifest = PurePosixPath(corpus).suffix.lower() in MANIFESTS
    found = _from_manifest(corpus) if is_manifest else _from_folder(corpus)
    if not found:
        raise ValueError(f"{corpus} holds no videos; known file names end in {', '.join(sorted(SUFFIXES))}")
    found.sort(key=lambda source: source.name)
    for first, second in pairwise(found):
        if first.name == second.name:
            raise ValueError(f"{corpus} lists {first.name!r} twice; each source may appear once")
    return found


def listing_digest(sources: list[Source]) -> str:
    """Identify a listing by names, sizes and labels; does not depend on its order."""
    lines = sorted(
        json.dumps(
            [s.name, s.size_bytes, s.caption, s.night, s.crowdedness, sorted(s.labels.items()), s.licence, s.consent]
        )
        for s in sources
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """Give a local path to a source; what is not on this machine is fetched to a temporary file.

    Raises:
        OSError: if it cannot be read.
    """
    if not storage.is_remote(uri):
        yield Path(uri)
        return
    with tempfile.NamedTemporaryFile(prefix="vldm-", suffix=PurePosixPath(urlsplit(uri).path).suffix) as file:
        _fetch(uri, file.name)
        yield Path(file.name)


def _fetch(uri: str, local: str) -> None:
    files, path = _filesystem(uri)
    for attempt in range(1, FETCH_ATTEMPTS + 1):
        try:
            files.get_file(path, local)
            return
        except FileNotFoundError:
            raise
        # The clients of HTTP and S3 raise errors of their own, not all of them OSError.
        except Exception as err:
            if attempt == FETCH_ATTEMPTS:
                raise OSError(f"{uri} cannot be fetched: {type(err).__name__}: {err}") from err
            logger.warning("fetch failed uri=%s attempt=%d error=%s", uri, attempt, err)
            # Jitter, or all workers would come back to a throttled store at once.
            time.sleep(random.uniform(0.5, 1.5) * RETRY_PAUSE_S * 2 ** (attempt - 1))


def _filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    return fsspec.core.url_to_fs(uri) if uri.startswith(("http://", "https://")) else storage.filesystem(uri)


def _from_folder(corpus: str) -> list[Source]:
    if not storage.exists(corpus):
        raise ValueError(f"no corpus at {corpus!r}; give a folder, an s3:// prefix or a manifest")
    files = storage.list_files(corpus)
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        path = PurePosixPath(file.relative)
        if path.name == SYNTHETIC_LABELS:
            table = pq.read_table(pa.BufferReader(storage.read_bytes(file.uri)), columns=_synthetic_columns(file.uri))
            rows |= {str(path.parent / row["file"]): row for row in table.to_pylist()}
    return [
        Source(uri=file.uri, name=file.relative, size_bytes=file.size_bytes, **_labels(rows.get(file.relative, {})))
        for file in files
        if PurePosixPath(file.relative).suffix.lower() in SUFFIXES
        and not PurePosixPath(file.relative).name.startswith(".")
    ]


def _synthetic_columns(uri: str) -> list[str]:
    """Columns of a label file but the frame-wise ones, which are read clip by clip when needed."""
    schema = pq.read_schema(pa.BufferReader(storage.read_bytes(uri)))
    return [column.name for column in schema if not pa.types.is_list(column.type)]


def _from_manifest(manifest: str) -> list[Source]:
    try:
        with local_copy(manifest) as path:
            content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"no manifest at {manifest!r}") from None
    base = manifest.rpartition("/")[0]
    sources = []
    for number, row in enumerate(_rows(manifest, content), start=1):
        place = next((str(row[key]) for key in _LOCATION if row.get(key)), None)
        if place is None:
            raise ValueError(f"{manifest}: row {number} names no video; it needs one of {', '.join(_LOCATION)}")
        absolute = storage.is_remote(place) or place.startswith("/")
        uri = place if absolute or not base else storage.join(base, place)
        sources.append(Source(uri=uri, name=place, size_bytes=int(row.get("size_bytes") or -1), **_labels(row)))
    return sources


def _rows(manifest: str, content: bytes) -> list[dict[str, Any]]:
    suffix = PurePosixPath(manifest).suffix.lower()
    try:
        if suffix == ".parquet":
            return pq.read_table(pa.BufferReader(content)).to_pylist()
        text = content.decode()
        if suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text)))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return [json.loads(line) for line in lines] if suffix == ".jsonl" else [{"uri": line} for line in lines]
    except (pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as err:
        raise ValueError(f"{manifest} is no readable {suffix[1:]} manifest: {err}") from err


def _labels(row: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of a row as fields of Source; other numeric columns become `labels`."""
    numbers = {
        key: float(value)
        for key, value in row.items()
        if key not in _OWN and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {
        "caption": str(row.get("caption") or ""),
        "night": _whole(row.get("night")),
        "crowdedness": _whole(row.get("crowdedness")),
        "licence": row.get("licence") or row.get("license") or None,
        "consent": str(row.get("consent", True)).lower() not in ("false", "0", "no"),
        "labels": numbers,
    }


def _whole(value: Any) -> int | None:
    return None if value is None or value == "" else int(value)
