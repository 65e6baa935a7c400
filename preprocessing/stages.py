"""The three stages of a run as plain classes over Arrow tables: decode groups, encode clips, write shards. No Ray here.

A table row is one clip on its way: frames, then latents, or the reason why there are none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infra.storage import sha256_of
from pipelines.memory import keep_freed_memory
from pipelines.shard_format import LatentClip, ShardConfig
from pipelines.shard_writer import ShardRecord, shard_record
from preprocessing import looks
from preprocessing.config import PreprocessConfig
from preprocessing.encoder import load_encoder
from preprocessing.ledger import GroupRecord, commit_group
from preprocessing.plan import PlannedClip
from preprocessing.plan_store import PlanReader, to_info
from preprocessing.rejection import Rejection
from preprocessing.sandbox import Sandbox, SandboxError
from preprocessing.sources import local_copy

ROW_SCHEMA = pa.schema(
    [
        ("group", pa.int32()),
        ("place", pa.int32()),
        ("data", pa.large_binary()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)


class DecodeGroups:
    """Decode every clip of the groups it is given, one pass per source.

    Args:
        shards: the shard set, for its plan.
        faces: detector of faces to blur; empty blurs none.
        sandbox: where decoding runs.
    """

    def __init__(self, shards: str, faces: str, sandbox: Sandbox) -> None:
        keep_freed_memory()
        self._plan, self._faces, self._sandbox = PlanReader(shards), faces, sandbox

    def __call__(self, groups: pa.Table) -> Iterator[pa.Table]:
        """Turn groups into clips, one table a clip."""
        for group in groups["group"].to_pylist():
            clips = self._plan.clips(group)
            by_source: dict[str, list[int]] = {}
            for place, clip in enumerate(clips):
                by_source.setdefault(clip.source, []).append(place)
            for row in self._plan.sources(list(by_source)):
                yield from self._decode_source(group, row, clips, by_source[row["name"]])

    def _decode_source(
        self, group: int, source: dict[str, Any], clips: list[PlannedClip], places: list[int]
    ) -> Iterator[pa.Table]:
        requests = [
            (place, clips[place].window.pts, (clips[place].window.bucket.height, clips[place].window.bucket.width))
            for place in places
        ]
        missing = set(places)
        try:
            with local_copy(source["uri"]) as path:
                if sha256_of(path) != source["digest"]:
                    raise SandboxError("changed", "the source is not the file that was planned")
                work = (looks.decode_clips, str(path), to_info(source), requests, self._faces)
                for place, frames in self._sandbox.stream(*work):
                    missing.discard(place)
                    yield _row(group, place, data=frames)
        except (SandboxError, OSError) as err:
            reason = err.reason if isinstance(err, SandboxError) else "io"
            stage = "decode" if isinstance(err, SandboxError) else "fetch"
            for place in sorted(missing):
                yield _row(group, place, stage=stage, reason=reason, message=str(err))


class EncodeClips:
    """Hold the frozen autoencoder and encode clips, each by itself.

    Args:
        folder: a diffusers `vae/` folder.
        settings: precision and tiling.
        device: see load_encoder.
        shards: the shard set, for its plan (shapes of the clips).
    """

    def __init__(self, folder: Path, settings: PreprocessConfig, device: str, shards: str) -> None:
        self._encode = load_encoder(folder, settings.precision, device, tiling=settings.tiling)
        self._plan = PlanReader(shards)
        self._group, self._clips = -1, list[PlannedClip]()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Replace frames by latents; rows without frames pass through."""
        return pa.concat_tables([self._encode_row(rows.slice(i, 1)) for i in range(rows.num_rows)])

    def _encode_row(self, row: pa.Table) -> pa.Table:
        data = row["data"][0]
        if not data.is_valid:
            return row
        group, place = row["group"][0].as_py(), row["place"][0].as_py()
        if group != self._group:
            self._group, self._clips = group, self._plan.clips(group)
        bucket = self._clips[place].window.bucket
        frames = np.frombuffer(data.as_buffer(), np.uint8).reshape(bucket.num_frames, bucket.height, bucket.width, 3)
        moments = self._encode(frames.copy())
        if not np.isfinite(moments).all():
            return _row(group, place, stage="encode", reason="overflow", message="moments are not finite in fp16")
        return _row(group, place, data=moments)


class WriteShards:
    """Collect the clips of each group; when the last has come, write its shards and commit the group.

    Args:
        shards: the shard set.
        config: of the shard set.
        faces_blurred: whether decoding blurs faces.
    """

    def __init__(self, shards: str, config: ShardConfig, faces_blurred: bool) -> None:
        keep_freed_memory()
        self._shards, self._config, self._faces_blurred = shards, config, faces_blurred
        self._plan = PlanReader(shards)
        self._planned: dict[int, list[PlannedClip]] = {}
        self._open: dict[int, dict[int, pa.Table]] = {}

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Take clips; return one row for each group that was committed."""
        done: list[GroupRecord] = []
        for i in range(rows.num_rows):
            group, place = rows["group"][i].as_py(), rows["place"][i].as_py()
            if group not in self._planned:
                self._planned[group], self._open[group] = self._plan.clips(group), {}
            # A copy, or the whole block it came in would stay in memory.
            self._open[group][place] = pa.Table.from_pylist(rows.slice(i, 1).to_pylist(), ROW_SCHEMA)
            if len(self._open[group]) == len(self._planned[group]):
                done.append(self._commit(group))
        values = {
            "group": [r.group for r in done],
            "clips": [r.num_clips for r in done],
            "rejected": [len(r.rejected) for r in done],
        }
        return pa.table(values, schema=pa.schema([(name, pa.int64()) for name in values]))

    def _commit(self, group: int) -> GroupRecord:
        planned, rows = self._planned.pop(group), self._open.pop(group)
        base = {row["name"]: to_info(row) for row in self._plan.sources(sorted({clip.source for clip in planned}))}
        rejected = [
            _rejection(clip, rows[place]) for place, clip in enumerate(planned) if not rows[place]["data"][0].is_valid
        ]
        good = [
            self._to_latent_clip(clip, rows[place]["data"][0].as_buffer(), float(base[clip.source].time_base))
            for place, clip in enumerate(planned)
            if rows[place]["data"][0].is_valid
        ]
        files: list[tuple[ShardRecord, bytes]] = []
        for bucket in sorted({clip.window.bucket for clip in planned}):
            own = [latent for clip, latent in good if clip.window.bucket == bucket]
            if own:
                files.append(shard_record(own, self._config, bucket, group))
        return commit_group(self._shards, group, files, rejected, self._config.digest)

    def _to_latent_clip(self, clip: PlannedClip, data: pa.Buffer, time_base: float) -> tuple[PlannedClip, LatentClip]:
        """Join a planned clip and its moments."""
        bucket, config = clip.window.bucket, self._config
        _, _, height, width = config.latent_shape(bucket)
        moments = np.frombuffer(data, np.float16).reshape(bucket.num_frames, 2 * config.latent_channels, height, width)
        return clip, LatentClip(
            clip_id=clip.clip_id,
            moments=moments,
            fps=bucket.fps,
            caption=clip.caption,
            night=clip.night,
            crowdedness=clip.crowdedness,
            boxes=clip.boxes,
            source=clip.source,
            times_s=tuple(time * time_base for time in clip.window.pts),
            labels=clip.labels,
            licence=clip.licence,
            faces_blurred=self._faces_blurred,
        )


def _row(
    group: int, place: int, *, data: np.ndarray | None = None, stage: str = "", reason: str = "", message: str = ""
) -> pa.Table:
    cells = pa.nulls(1, pa.large_binary()) if data is None else _one_cell(np.ascontiguousarray(data))
    values = {"group": [group], "place": [place], "data": cells, "stage": [stage], "reason": [reason]}
    return pa.table({**values, "message": [message]}, schema=ROW_SCHEMA)


def _one_cell(data: np.ndarray) -> pa.LargeBinaryArray:
    """A column of one row that shares the array's memory."""
    ends = np.array([0, data.nbytes], np.int64)
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(data)])


def _rejection(clip: PlannedClip, row: pa.Table) -> Rejection:
    return Rejection(
        source=clip.source,
        clip_id=clip.clip_id,
        stage=row["stage"][0].as_py(),
        reason=row["reason"][0].as_py(),
        message=row["message"][0].as_py(),
        clips=1,
    )
