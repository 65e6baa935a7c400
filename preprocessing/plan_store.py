"""The plan as files: `plan/clips.parquet` (one row group a group), sources, refusals, and last `plan/plan.json`."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from pipelines.shard_format import Bucket
from pipelines.video_decode import VideoInfo
from preprocessing.plan import Looked, Plan, PlannedClip, Refusal
from preprocessing.rejection import Rejection
from preprocessing.sealed import seal, unseal
from preprocessing.windows import Window

PLAN_FILES = ("clips.parquet", "sources.parquet", "refused.parquet", "plan.json")
_BOXES = pa.list_(pa.list_(pa.list_(pa.float32())))
CLIP_SCHEMA = pa.schema(
    [
        ("group", pa.int32()),
        ("bucket", pa.string()),
        ("slot", pa.int32()),
        ("clip_id", pa.string()),
        ("source", pa.string()),
        ("start", pa.string()),
        ("pts", pa.list_(pa.int64())),
        ("caption", pa.string()),
        ("night", pa.int8()),
        ("crowdedness", pa.int32()),
        ("labels", pa.map_(pa.string(), pa.float64())),
        ("licence", pa.string()),
        ("boxes", _BOXES),
        ("scores", pa.map_(pa.string(), pa.float64())),
    ]
)
SOURCE_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("digest", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("duration_s", pa.float64()),
        ("shots", pa.int32()),
        ("time_base", pa.string()),
        ("pts", pa.list_(pa.int64())),
        ("key_pts", pa.list_(pa.int64())),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("rotation", pa.int32()),
        ("codec", pa.string()),
        ("pixel_format", pa.string()),
        ("has_audio", pa.bool_()),
        ("licence", pa.string()),
    ]
)
REFUSAL_SCHEMA = pa.schema(
    [("source", pa.string()), ("clip_id", pa.string()), ("reason", pa.string()), ("score", pa.float64())]
)


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """What `plan/plan.json` says; its presence is the plan's commit.

    Attributes:
        corpus: where the corpus lay.
        listing_digest: of the listing that was planned.
        corpus_digest: of the contents.
        config_digest: of the PreprocessConfig.
        sources, rejected, refused, clips, groups, shards: counts.
        captions: distinct texts.
        buckets: clips by bucket.
        latent_bytes: bytes of all latents.
        seconds_of_video: length of all planned clips.
        files: sha256 of the plan's other files.
    """

    corpus: str
    listing_digest: str
    corpus_digest: str
    config_digest: str
    sources: int
    rejected: int
    refused: int
    clips: int
    groups: int
    shards: int
    captions: int
    buckets: Mapping[str, int]
    latent_bytes: int
    seconds_of_video: float
    files: Mapping[str, str] = field(default_factory=dict)


def write_plan(shards: str, plan: Plan, summary: PlanSummary) -> None:
    """Write a plan; the summary last."""
    contents = {
        "sources.parquet": _parquet(map(_source_row, plan.sources), SOURCE_SCHEMA),
        "refused.parquet": _parquet(map(asdict, plan.refusals), REFUSAL_SCHEMA),
        "clips.parquet": _grouped(plan.clips),
    }
    for name, content in contents.items():
        storage.write_atomic(storage.join(shards, "plan", name), content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    storage.write_atomic(storage.join(shards, "plan", "plan.json"), seal(asdict(replace(summary, files=digests))))


def read_summary(shards: str) -> PlanSummary | None:
    """Read the summary, None if there is no finished plan.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        content = storage.read_bytes(storage.join(shards, "plan", "plan.json"))
    except FileNotFoundError:
        return None
    return PlanSummary(**unseal(content, f"{shards}: plan.json"))


class PlanReader:
    """Reads the clips and the sources of one group at a time."""

    def __init__(self, shards: str) -> None:
        self._clips = pq.ParquetFile(pa.BufferReader(storage.read_bytes(storage.join(shards, "plan", "clips.parquet"))))
        self._sources = pq.ParquetFile(
            pa.BufferReader(storage.read_bytes(storage.join(shards, "plan", "sources.parquet")))
        )

    def clips(self, group: int) -> list[PlannedClip]:
        """Clips of a group, ordered by bucket and slot."""
        return [_to_clip(row) for row in self._clips.read_row_group(group, use_threads=False).to_pylist()]

    def all_clips(self) -> Iterable[PlannedClip]:
        """Clips of all groups."""
        for group in range(self._clips.num_row_groups if self._clips.metadata.num_rows else 0):
            yield from self.clips(group)

    def sources(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Rows of sources by name, all by default."""
        table = self._sources.read(use_threads=False)
        if names is not None:
            table = table.filter(pa.compute.is_in(table["name"], pa.array(sorted(names), pa.string())))
        return table.to_pylist()


def to_info(row: dict[str, Any]) -> VideoInfo:
    """The frames of a planned source."""
    return VideoInfo(
        pts=tuple(row["pts"]),
        key_pts=tuple(row["key_pts"]),
        time_base=Fraction(row["time_base"]),
        height=row["height"],
        width=row["width"],
        rotation=row["rotation"],
        codec=row["codec"],
        pixel_format=row["pixel_format"],
        has_audio=row["has_audio"],
    )


def read_refusals(shards: str) -> list[Refusal]:
    """Clips and sources left out on purpose."""
    content = storage.read_bytes(storage.join(shards, "plan", "refused.parquet"))
    return [Refusal(**row) for row in pq.read_table(pa.BufferReader(content)).to_pylist()]


def source_rejections(rows: Iterable[dict[str, Any]]) -> list[Rejection]:
    """Sources that planning put into quarantine."""
    return [
        Rejection(source=row["name"], clip_id="", stage=row["stage"], reason=row["reason"], message=row["message"])
        for row in rows
        if row["reason"]
    ]


def _grouped(clips: Sequence[PlannedClip]) -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, CLIP_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        start = 0
        while start < len(clips):
            end = start
            while end < len(clips) and clips[end].group == clips[start].group:
                end += 1
            rows = sorted(map(_clip_row, clips[start:end]), key=lambda row: (row["bucket"], row["slot"]))
            writer.write_table(pa.Table.from_pylist(rows, CLIP_SCHEMA), row_group_size=len(rows))
            start = end
    return sink.getvalue().to_pybytes()


def _parquet(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _clip_row(clip: PlannedClip) -> dict[str, Any]:
    own = ("group", "slot", "clip_id", "source", "caption", "night", "crowdedness", "licence", "boxes")
    return {
        **{name: getattr(clip, name) for name in own},
        "bucket": clip.window.bucket.name,
        "start": str(clip.window.start),
        "pts": clip.window.pts,
        "labels": sorted(clip.labels.items()),
        "scores": sorted(clip.scores.items()),
    }


def _to_clip(row: dict[str, Any]) -> PlannedClip:
    window = Window(start=Fraction(row.pop("start")), pts=tuple(row.pop("pts")), bucket=Bucket.parse(row.pop("bucket")))
    row["labels"], row["scores"] = dict(row["labels"] or ()), dict(row["scores"] or ())
    row["boxes"] = tuple(tuple((b[0], b[1], b[2], b[3]) for b in frame) for frame in row["boxes"] or ())
    return PlannedClip(window=window, **row)


def _source_row(looked: Looked) -> dict[str, Any]:
    source, sight, rejection = looked.source, looked.sight, looked.rejection
    row: dict[str, Any] = {
        "name": source.name,
        "uri": source.uri,
        "size_bytes": source.size_bytes,
        "digest": sight.digest if sight else "",
        "licence": source.licence,
        "shots": len(sight.shots) if sight else 0,
    }
    if rejection:
        row |= {"stage": rejection.stage, "reason": rejection.reason, "message": rejection.message}
    if sight:
        info = sight.info
        row |= asdict(info) | {"time_base": str(info.time_base), "duration_s": float(info.end - info.start)}
    return row
