"""Latent shards as training reads them: open a finished set, list its clips, read them back. No Ray.

A shard set is one folder, local or `s3://`:
    config.json                       what decided the bytes (ShardConfig)
    data/<bucket>/shard-*.parquet     latents; the content digest is part of the file name
    index.parquet                     one row per clip: where it lies and its labels
    _SUCCESS.json                     written last: counts and the digest of the whole set
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem

from pipelines import shard_format
from pipelines.latent_pages import latent_values
from pipelines.shard_format import Bucket, LatentClip, ShardConfig

OPEN_FOOTERS = 256


class ClipRef(NamedTuple):
    """Where one clip lies: shard number within the set, row group within the shard, row within the row group."""

    shard: int
    row_group: int
    row: int


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One Parquet file of a shard set, as the index names it."""

    path: str
    bucket: Bucket
    num_clips: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class ClipLabels:
    """What the index knows of a clip without reading its latents."""

    clip_id: str
    source: str
    caption: str
    night: int | None
    crowdedness: int | None


class ShardSet:
    """A finished folder of latent shards.

    Attributes:
        uri: where it lies.
        config: what decided its bytes: autoencoder, latent kind, scale, buckets.
        digest: identifies the whole set; equal digests mean equal bytes.
        files: the shard files; `ClipRef.shard` counts in this list.
        buckets: for each bucket its clips, ordered by shard, row group and row.
        labels: what the index says of each clip.
    """

    def __init__(self, uri: str, success: dict[str, Any], config: ShardConfig, index: pa.Table) -> None:
        self.uri = uri
        self.config = config
        self.digest: str = success["digest"]
        self.files = [
            ShardFile(
                path=file["path"],
                bucket=Bucket.parse(file["bucket"]),
                num_clips=file["clips"],
                size_bytes=file["size_bytes"],
            )
            for file in success["files"]
        ]
        self.labels: dict[ClipRef, ClipLabels] = {}
        self.buckets: dict[Bucket, list[ClipRef]] = {bucket: [] for bucket in config.buckets}
        for row in index.to_pylist():
            ref = ClipRef(row.pop("shard"), row.pop("row_group"), row.pop("row"))
            self.labels[ref] = ClipLabels(**row)
            self.buckets[self.files[ref.shard].bucket].append(ref)
        for refs in self.buckets.values():
            refs.sort()
        self._filesystem, self._root = _filesystem(uri)
        self._is_local = "file" in self._filesystem.protocol
        self._footer = lru_cache(maxsize=OPEN_FOOTERS)(self._read_footer)
        self._mapped = lru_cache(maxsize=OPEN_FOOTERS)(lambda shard: pa.memory_map(self._path(shard)).read_buffer())

    def __len__(self) -> int:
        """Count the clips."""
        return len(self.labels)

    def find(self, clip_id: str) -> ClipRef:
        """Look up where a clip lies.

        Raises:
            ValueError: if the set holds no such clip.
        """
        for ref, labels in self.labels.items():
            if labels.clip_id == clip_id:
                return ref
        raise ValueError(f"{self.uri} holds no clip {clip_id!r}; its index.parquet lists the {len(self)} it has")

    def read(self, refs: Iterable[ClipRef]) -> list[LatentClip]:
        """Read clips in the order asked for; each row group is fetched once, with its page checksums verified.

        Raises:
            ValueError: if a shard does not hold what the index says or its checksum fails; names the file.
        """
        wanted = list(refs)
        rows: dict[tuple[int, int], list[int]] = {}
        for ref in wanted:
            rows.setdefault((ref.shard, ref.row_group), []).append(ref.row)
        clips: dict[ClipRef, LatentClip] = {}
        for (shard, row_group), own in rows.items():
            table, values = self._read_row_group(shard, row_group)
            if max(own) >= table.num_rows:
                raise ValueError(f"{self.files[shard].path}: row group {row_group} has no row {max(own)}")
            for row, clip in zip(own, shard_format.to_clips(table, self.config, own, values), strict=True):
                clips[ClipRef(shard, row_group, row)] = clip
        return [clips[ref] for ref in wanted]

    def _path(self, shard: int) -> str:
        return f"{self._root}/{self.files[shard].path}"

    def _read_footer(self, shard: int) -> pq.FileMetaData:
        size = self.files[shard].size_bytes
        tail = min(size, 64 * 1024)
        window = _Window(self._filesystem.cat_file(self._path(shard), start=size - tail, end=size), size - tail)
        if int.from_bytes(window.content[-8:-4], "little") + 8 > tail:
            return pq.read_metadata(pa.BufferReader(self._filesystem.cat_file(self._path(shard))))
        return pq.read_metadata(pa.PythonFile(window, mode="r"))

    def _read_row_group(self, shard: int, row_group: int) -> tuple[pa.Table, np.ndarray | None]:
        """Read a row group: labels, and bytes of the latents; all in one table if the pages are not of our form."""
        try:
            footer = self._footer(shard)
            column = footer.row_group(row_group).column(footer.schema.names.index("latent"))
            start, size = column.data_page_offset, column.total_compressed_size
            if self._is_local:
                content = self._mapped(shard)
                source: pa.NativeFile = pa.BufferReader(content)
                chunk = memoryview(content).cast("B")[start : start + size]
            else:
                first, end = _byte_range(footer, row_group)
                window = _Window(self._filesystem.cat_file(self._path(shard), start=first, end=end), first)
                source = pa.PythonFile(window, mode="r")
                chunk = memoryview(window.content)[start - first : start - first + size]
            values = latent_values(chunk) if column.compression == "UNCOMPRESSED" else None
            with pq.ParquetFile(source, metadata=footer, page_checksum_verification=True) as file:
                names = [name for name in file.schema_arrow.names if values is None or name != "latent"]
                return file.read_row_group(row_group, columns=names, use_threads=False), values
        except (OSError, pa.ArrowException) as err:
            raise ValueError(
                f"{self.uri}: shard {self.files[shard].path} is missing or damaged ({err}); "
                "run `python -m preprocessing verify --repair`"
            ) from err


class _Window:
    """A file of which only bytes [start, start + len(content)) are at hand; pyarrow reads no others."""

    def __init__(self, content: bytes, start: int) -> None:
        self.content = content
        self.start = start
        self.position = 0
        self.closed = False

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self.position, 2: self.start + len(self.content)}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> memoryview:
        begin = self.position - self.start
        if begin < 0:
            raise OSError(f"byte {self.position} lies before the fetched range at {self.start}")
        end = len(self.content) if size is None or size < 0 else begin + size
        self.position += min(end, len(self.content)) - begin
        return memoryview(self.content)[begin:end]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def _byte_range(footer: pq.FileMetaData, row_group: int) -> tuple[int, int]:
    columns = [footer.row_group(row_group).column(i) for i in range(footer.num_columns)]
    starts = [
        min(c.data_page_offset, c.dictionary_page_offset) if c.has_dictionary_page else c.data_page_offset
        for c in columns
    ]
    return min(starts), max(start + c.total_compressed_size for start, c in zip(starts, columns, strict=True))


def _filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    filesystem, path = fsspec.core.url_to_fs(uri)
    return filesystem, path.rstrip("/")


def open_shards(uri: str) -> ShardSet:
    """Open a finished shard set.

    Args:
        uri: local path or `s3://bucket/prefix`.

    Raises:
        ValueError: if the folder is missing, unfinished, empty or of another layout version.
    """
    filesystem, root = _filesystem(uri)
    try:
        config = ShardConfig.from_json(filesystem.cat_file(f"{root}/config.json").decode())
    except FileNotFoundError:
        raise ValueError(
            f"{uri} is no shard set: it has no config.json; make one with `python -m preprocessing run CORPUS {uri}`"
        ) from None
    try:
        success = json.loads(filesystem.cat_file(f"{root}/_SUCCESS.json"))
        index = pq.read_table(pa.BufferReader(filesystem.cat_file(f"{root}/index.parquet")))
    except FileNotFoundError:
        raise ValueError(
            f"{uri} is unfinished: it has no _SUCCESS.json; run the same `python -m preprocessing run` line again"
        ) from None
    if index.num_rows == 0:
        raise ValueError(f"{uri} holds no clips; see its quarantine.parquet for the reasons")
    return ShardSet(uri, success, config, index)


def clips_per_bucket(shards: ShardSet) -> Sequence[tuple[Bucket, int]]:
    """Count the clips of each bucket, in the order of the config."""
    return [(bucket, len(refs)) for bucket, refs in shards.buckets.items()]
