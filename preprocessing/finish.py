"""Finish a shard set once every group is committed: quarantine table, index, and last `_SUCCESS.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from pipelines.shard_format import ShardConfig
from pipelines.shard_writer import ShardRecord, index_bytes, success_json
from preprocessing.ledger import GroupRecord, read_records
from preprocessing.plan_store import PlanReader, source_rejections
from preprocessing.rejection import Rejection

SUCCESS = "_SUCCESS.json"
QUARANTINE = "quarantine.parquet"
CARD_FILES = ("card.md", "card.png", "stats.json")
_QUARANTINE_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("clip_id", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("clips", pa.int32()),
    ]
)


def finish(shards: str, config: ShardConfig) -> list[Rejection]:
    """Write what readers need; same ledger, same bytes.

    Returns:
        All rejections, of sources and of clips.
    """
    records = read_records(shards)
    rejections = all_rejections(shards, records)
    files = shard_files(records)
    storage.write_atomic(storage.join(shards, QUARANTINE), quarantine_bytes(rejections))
    storage.write_atomic(storage.join(shards, "index.parquet"), index_bytes(files))
    storage.write_atomic(storage.join(shards, SUCCESS), success_json(files, config).encode())
    return rejections


def shard_files(records: Sequence[GroupRecord]) -> list[ShardRecord]:
    """All shards in the order of the index: by bucket, then by group."""
    return sorted((file for record in records for file in record.files), key=lambda file: file.path)


def all_rejections(shards: str, records: Sequence[GroupRecord]) -> list[Rejection]:
    """Rejections of planning and of all groups, sorted."""
    found = source_rejections(PlanReader(shards).sources())
    found += [rejection for record in records for rejection in record.rejected]
    return sorted(found, key=lambda rejection: (rejection.source, rejection.clip_id))


def read_success(shards: str) -> dict[str, Any] | None:
    """What `_SUCCESS.json` says, None if the set is unfinished."""
    try:
        values: dict[str, Any] = json.loads(storage.read_bytes(storage.join(shards, SUCCESS)))
        return values
    except FileNotFoundError:
        return None


def read_quarantine(shards: str) -> list[Rejection]:
    """The quarantine table of a finished set."""
    content = storage.read_bytes(storage.join(shards, QUARANTINE))
    return [Rejection(**row) for row in pq.read_table(pa.BufferReader(content)).to_pylist()]


def quarantine_bytes(rejections: Sequence[Rejection]) -> bytes:
    """The quarantine table as bytes."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([asdict(rejection) for rejection in rejections], _QUARANTINE_SCHEMA)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()
