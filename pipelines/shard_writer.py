"""Publish shard files and finish a shard set: index.parquet, then _SUCCESS.json. Used by preprocessing and by tests."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.shard_format import Bucket, LatentClip, ShardConfig, rows_per_group, to_parquet

INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32()),
        pa.field("row_group", pa.int32()),
        pa.field("row", pa.int32()),
        pa.field("clip_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("night", pa.int8()),
        pa.field("crowdedness", pa.int32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One published shard file: what the ledger remembers of it, in row order."""

    path: str
    bucket: str
    size_bytes: int
    digest: str
    rows_per_group: int
    clips: tuple[dict[str, object], ...]


def shard_record(
    clips: Sequence[LatentClip], config: ShardConfig, bucket: Bucket, number: int
) -> tuple[ShardRecord, bytes]:
    """Encode one shard file and describe it; its name carries the digest of its bytes."""
    content = to_parquet(clips, config, bucket)
    digest = hashlib.sha256(content).hexdigest()
    labels = ("clip_id", "source", "caption", "night", "crowdedness")
    record = ShardRecord(
        path=f"data/{bucket.name}/shard-{number:05d}-{digest[:16]}.parquet",
        bucket=bucket.name,
        size_bytes=len(content),
        digest=digest,
        rows_per_group=rows_per_group(config, bucket),
        clips=tuple({name: getattr(clip, name) for name in labels} for clip in clips),
    )
    return record, content


def index_table(records: Sequence[ShardRecord]) -> pa.Table:
    """List every clip with its place; `records` are in the order of _SUCCESS.json's files."""
    rows = [
        {"shard": shard, "row_group": i // record.rows_per_group, "row": i % record.rows_per_group, **clip}
        for shard, record in enumerate(records)
        for i, clip in enumerate(record.clips)
    ]
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def index_bytes(records: Sequence[ShardRecord]) -> bytes:
    """index.parquet as bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(index_table(records), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def success_json(records: Sequence[ShardRecord], config: ShardConfig) -> str:
    """_SUCCESS.json: the files and the digest of the whole set."""
    files = [
        {
            "path": record.path,
            "bucket": record.bucket,
            "clips": len(record.clips),
            "size_bytes": record.size_bytes,
            "digest": record.digest,
        }
        for record in records
    ]
    content = json.dumps([config.digest, files], sort_keys=True)
    summary = {
        "layout": config.layout,
        "digest": hashlib.sha256(content.encode()).hexdigest(),
        "clips": sum(len(record.clips) for record in records),
        "files": files,
    }
    return json.dumps(summary, sort_keys=True, indent=1) + "\n"


def write_shards(folder: Path, config: ShardConfig, clips: dict[Bucket, Sequence[Sequence[LatentClip]]]) -> None:
    """Write a whole small set to a local folder at once: for tests, and for latents that come from elsewhere.

    Args:
        folder: where to; created.
        config: of the set.
        clips: for each bucket its shards, each a list of clips.
    """
    records: list[ShardRecord] = []
    for bucket, shards in sorted(clips.items()):
        for shard in shards:
            record, content = shard_record(shard, config, bucket, len(records))
            path = folder / record.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            records.append(record)
    (folder / "config.json").write_text(config.to_json())
    (folder / "index.parquet").write_bytes(index_bytes(records))
    (folder / "_SUCCESS.json").write_text(success_json(records, config))
