"""The latent shard file: its Parquet schema (with a version), clip to row and back.

One shard holds clips of one bucket, so that the latent is a fixed-size binary column: written and read at a quarter of
the CPU time that an Arrow tensor column costs, and free of 2 GiB offsets. Uncompressed (latents are noise to a
compressor), with page checksums, in row groups of about 8 MiB: one range read fetches a clip.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16

LAYOUT = 1
ROW_GROUP_BYTES = 8 * 2**20
LATENT_KINDS = ("kl_moments", "kl_mean", "vq_prequant")
# Kinds without a stored variance read back with this log-variance: a standard deviation of 3e-7.
NO_VARIANCE = -30.0

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, order=True)
class Bucket:
    """The form all clips of a shard share: frames, pixel size and frame rate (a fraction as text, such as "15/2")."""

    num_frames: int
    height: int
    width: int
    rate: str

    def __post_init__(self) -> None:
        if min(self.num_frames, self.height, self.width) < 1 or Fraction(self.rate) <= 0:
            raise ValueError(f"bucket {self.name} must have positive frames, height, width and frame rate")

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(Fraction(self.rate))

    @property
    def name(self) -> str:
        """Folder name, such as 8x128x256@15-2."""
        return f"{self.num_frames}x{self.height}x{self.width}@{self.rate.replace('/', '-')}"

    @classmethod
    def parse(cls, name: str) -> "Bucket":
        """Read a folder name back."""
        size, _, rate = name.partition("@")
        num_frames, height, width = (int(n) for n in size.split("x"))
        return cls(num_frames=num_frames, height=height, width=width, rate=rate.replace("-", "/"))


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Everything that decides the bytes of a shard set.

    Attributes:
        autoencoder: name of the autoencoder for people; its digest is what counts.
        autoencoder_digest: sha256 over config and weights.
        latent_kind: kl_moments (mean and log-variance), kl_mean, or vq_prequant (before quantisation).
        latent_channels: z, channels of one latent.
        downsampling: pixels per latent cell along each side.
        scaling_factor, shift_factor: a scaled latent is (z - shift) * scale; what is stored is unscaled.
        buckets: the forms of the clips.
        corpus_digest: sha256 over the planned sources.
        preprocessing: all other settings and library versions that decide bytes.
        layout: version of this layout.
    """

    autoencoder: str
    autoencoder_digest: str
    latent_kind: str
    latent_channels: int
    downsampling: int
    scaling_factor: float
    shift_factor: float
    buckets: tuple[Bucket, ...]
    corpus_digest: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    layout: int = LAYOUT

    def __post_init__(self) -> None:
        if self.layout != LAYOUT:
            raise ValueError(f"shard layout {self.layout} is not {LAYOUT}, the one this version reads; encode anew")
        if self.latent_kind not in LATENT_KINDS:
            raise ValueError(f"latent_kind={self.latent_kind!r} is none of {', '.join(LATENT_KINDS)}")

    @property
    def rates(self) -> tuple[str, ...]:
        """Distinct frame rates of the buckets, slowest first."""
        return tuple(sorted({bucket.rate for bucket in self.buckets}, key=Fraction))

    @property
    def stored_channels(self) -> int:
        """Channels on disk: 2z for moments, z for the kinds without a variance."""
        return self.latent_channels * (2 if self.latent_kind == "kl_moments" else 1)

    @property
    def digest(self) -> str:
        """Identify the config."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def latent_shape(self, bucket: Bucket) -> tuple[int, int, int, int]:
        """Shape (t, stored channels, h, w) of one stored clip."""
        size = (bucket.height // self.downsampling, bucket.width // self.downsampling)
        return (bucket.num_frames, self.stored_channels, *size)

    def to_json(self) -> str:
        """Canonical JSON: equal configs give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ShardConfig":
        """Read the config back.

        Raises:
            ValueError: if it is of another layout or not such a config.
        """
        values = json.loads(text)
        if values.get("layout") != LAYOUT:
            raise ValueError(f"shard layout {values.get('layout')} is not {LAYOUT}, the one this version reads")
        values["buckets"] = tuple(Bucket(**bucket) for bucket in values["buckets"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class LatentClip:
    """One clip as training sees it.

    Attributes:
        clip_id: hash of source content, span, frame rate and bucket.
        moments: unscaled mean and log-variance of each frame, k = 2z channels.
        fps: frames per second.
        caption: text, empty if there is none.
        night: 1 by night, 0 by day, None if unknown.
        crowdedness: vehicles seen in the clip, None if unknown.
        boxes: for each frame its vehicle boxes (x1, y1, x2, y2) in [0, 1] of width and height.
        source: path of the source within the corpus.
        times_s: presentation time of each frame in the source, seconds.
        labels: further numbers known of the clip, such as fog or time_of_day.
        licence: licence of the source, None if unknown.
        faces_blurred: whether faces were blurred before encoding.
    """

    clip_id: str
    moments: Float16[np.ndarray, "t k h w"]
    fps: float
    caption: str = ""
    night: int | None = None
    crowdedness: int | None = None
    boxes: tuple[tuple[Box, ...], ...] = ()
    source: str = ""
    times_s: tuple[float, ...] = ()
    labels: Mapping[str, float] = field(default_factory=dict)
    licence: str | None = None
    faces_blurred: bool = False


def shard_schema(config: ShardConfig, bucket: Bucket) -> pa.Schema:
    """Schema of the shards of one bucket; metadata says what the binary column means without any other file."""
    shape = config.latent_shape(bucket)
    metadata = {
        "videoldm.layout": str(config.layout),
        "videoldm.config_digest": config.digest,
        "videoldm.autoencoder_digest": config.autoencoder_digest,
        "videoldm.latent": json.dumps(
            {
                "kind": config.latent_kind,
                "shape": shape,
                "dtype": "float16",
                "scaling_factor": config.scaling_factor,
                "shift_factor": config.shift_factor,
            }
        ),
        "videoldm.bucket": bucket.name,
    }
    columns = [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("latent", pa.binary(int(np.prod(shape)) * 2), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("night", pa.int8()),
        pa.field("crowdedness", pa.int32()),
        pa.field("boxes", pa.list_(pa.list_(pa.list_(pa.float32())))),
        pa.field("source", pa.string(), nullable=False),
        pa.field("times_s", pa.list_(pa.float64())),
        pa.field("labels", pa.map_(pa.string(), pa.float64())),
        pa.field("licence", pa.string()),
        pa.field("faces_blurred", pa.bool_(), nullable=False),
    ]
    return pa.schema(columns, metadata=metadata)


def rows_per_group(config: ShardConfig, bucket: Bucket) -> int:
    """Clips per row group: about 8 MiB, at least one."""
    return max(1, ROW_GROUP_BYTES // (int(np.prod(config.latent_shape(bucket))) * 2))


def to_parquet(clips: Sequence[LatentClip], config: ShardConfig, bucket: Bucket) -> bytes:
    """Write clips of one bucket as the bytes of a shard file: same clips, config and library, same bytes.

    Raises:
        ValueError: if a clip's moments are not of the bucket's shape or not finite in fp16.
    """
    schema = shard_schema(config, bucket)
    shape = config.latent_shape(bucket)
    latents = np.stack([_stored_latent(clip, shape) for clip in clips])
    columns: dict[str, Any] = {
        name: [getattr(clip, name) for clip in clips] for name in schema.names if name not in ("latent", "labels")
    }
    columns["labels"] = [sorted(clip.labels.items()) for clip in clips]
    columns["latent"] = pa.FixedSizeBinaryArray.from_buffers(
        schema.field("latent").type, len(clips), [None, pa.py_buffer(np.ascontiguousarray(latents))]
    )
    table = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)
    sink = pa.BufferOutputStream()
    # Statistics of a latent would repeat two of them per row group in the footer.
    pq.write_table(
        table,
        sink,
        row_group_size=rows_per_group(config, bucket),
        compression="none",
        use_dictionary=False,
        write_statistics=["clip_id", "fps", "night", "crowdedness"],
        write_page_checksum=True,
    )
    return sink.getvalue().to_pybytes()


def to_clips(
    table: pa.Table, config: ShardConfig, rows: Sequence[int] | None = None, values: np.ndarray | None = None
) -> list[LatentClip]:
    """Read rows of a shard table back, all by default; their moments are views of its memory.

    Args:
        table: rows of a shard.
        config: of the set.
        rows: which.
        values: bytes of the latent column, if the table lacks it.
    """
    bucket = Bucket.parse(table.schema.metadata[b"videoldm.bucket"].decode())
    shape = config.latent_shape(bucket)
    if values is None:
        latents = _array(table["latent"])
        stored = np.frombuffer(latents.buffers()[1], np.float16).reshape(-1, *shape)[latents.offset :]
    else:
        stored = values.view(np.float16).reshape(-1, *shape)
    chosen = list(range(table.num_rows) if rows is None else rows)
    columns = {name: _values(table[name], chosen) for name in table.column_names if name != "latent"}
    clips = []
    for number, *labels in zip(chosen, *columns.values(), strict=True):
        row = dict(zip(columns, labels, strict=True))
        row["boxes"] = tuple(tuple((b[0], b[1], b[2], b[3]) for b in frame) for frame in row["boxes"] or ())
        row["times_s"] = tuple(row["times_s"] or ())
        row["labels"] = dict(row["labels"] or ())
        clips.append(LatentClip(moments=_with_variance(stored[number], config), **row))
    return clips


def _array(column: pa.ChunkedArray) -> pa.Array:
    # Combining copies, even a single chunk.
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _values(column: pa.ChunkedArray, rows: Sequence[int]) -> Sequence[Any]:
    """Some rows of a column as Python values."""
    array = _array(column)
    items = array.keys if pa.types.is_map(array.type) else array.values if pa.types.is_list(array.type) else None
    if array.null_count == len(array) or (items is not None and not len(items)):
        # Columns that nobody filled are common, and nested ones are slow to look through.
        return [None] * len(rows)
    return [array[row].as_py() for row in rows]


def _stored_latent(clip: LatentClip, shape: tuple[int, ...]) -> np.ndarray:
    latent = clip.moments[:, : shape[1]]
    if latent.shape != shape:
        raise ValueError(f"clip {clip.clip_id}: moments {clip.moments.shape} do not fill the bucket's {shape}")
    if not np.isfinite(latent).all():
        raise ValueError(f"clip {clip.clip_id}: moments are not finite in fp16; the autoencoder overflows on it")
    return latent


def _with_variance(stored: np.ndarray, config: ShardConfig) -> np.ndarray:
    if config.latent_kind == "kl_moments":
        return stored
    return np.concatenate([stored, np.full_like(stored, NO_VARIANCE)], axis=1)
