"""Make a corpus of synthetic drives: MP4 files and one Parquet file of labels. Same settings, same bytes."""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.video_encode import encode_mp4
from preprocessing.synthetic.light import is_night
from preprocessing.synthetic.render import Drive, Frame
from preprocessing.synthetic.scene import Scene, draw_scene

LABELS = "labels.parquet"
_BOX = pa.struct(
    [
        ("vehicle", pa.int32()),
        ("kind", pa.string()),
        ("box", pa.list_(pa.float32(), 4)),
        ("visible_px", pa.float32()),
        ("distance_m", pa.float32()),
        ("speed_mps", pa.float32()),
        ("oncoming", pa.bool_()),
    ]
)
LABEL_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("seed", pa.int64()),
        ("clip", pa.int64()),
        ("caption", pa.string()),
        ("night", pa.int8()),
        ("crowdedness", pa.int32()),
        ("time_of_day", pa.float64()),
        ("fog", pa.float64()),
        ("cloud_cover", pa.float64()),
        ("surroundings", pa.string()),
        ("lanes", pa.int32()),
        ("camera_height_m", pa.float64()),
        ("camera_fov_deg", pa.float64()),
        ("fps", pa.string()),
        ("licence", pa.string()),
        ("speed_mps", pa.list_(pa.float32())),
        ("curvature", pa.list_(pa.float32())),
        ("boxes", pa.list_(pa.list_(_BOX))),
    ]
)


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """What decides the bytes of a synthetic corpus.

    Attributes:
        clips: how many drives.
        seed: of the corpus; drive i of a seed is the same in a corpus of any length, size and rate.
        height, width: pixels, even.
        fps: frames per second, a fraction such as 15/2 is fine.
        seconds: length of each drive.
        noise: standard deviation of the camera's noise, as a share of white.
        quality: x264 constant rate factor.
    """

    clips: int
    seed: int
    height: int
    width: int
    fps: str
    seconds: float
    noise: float
    quality: int = 16

    def __post_init__(self) -> None:
        if self.clips < 1 or self.seconds <= 0 or Fraction(self.fps) <= 0:
            raise ValueError(f"clips={self.clips}, seconds={self.seconds} and fps={self.fps} must be positive")
        if self.height % 2 or self.width % 2 or min(self.height, self.width) < 32:
            raise ValueError(f"size {self.height}x{self.width} must be even and at least 32 on both sides")

    @property
    def num_frames(self) -> int:
        """Frames of each clip."""
        return max(1, round(Fraction(self.seconds) * Fraction(self.fps)))


def is_complete(out: Path, settings: CorpusSettings) -> bool:
    """Say whether `out` holds exactly this corpus already."""
    try:
        metadata = pq.read_schema(out / LABELS).metadata or {}
    except FileNotFoundError:
        return False
    return metadata.get(b"videoldm.synthetic") == _identity(settings)


def synthesize(out: Path, settings: CorpusSettings, workers: int) -> Iterator[int]:
    """Render all drives, then write the labels.

    Args:
        out: folder; clip i becomes `<i as 6 digits>.mp4`.
        settings: of the corpus.
        workers: processes; the result does not depend on it.

    Yields:
        Numbers of finished clips, in order.
    """
    rows = []
    jobs = [(out, settings, clip) for clip in range(settings.clips)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for row in pool.map(_render_clip, jobs):
            rows.append(row)
            yield row["clip"]
    table = pa.Table.from_pylist(rows, LABEL_SCHEMA)
    table = table.replace_schema_metadata({"videoldm.synthetic": _identity(settings)})
    temporary = out / f".tmp-{LABELS}"
    pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    temporary.replace(out / LABELS)


def _render_clip(job: tuple[Path, CorpusSettings, int]) -> dict[str, Any]:
    out, settings, clip = job
    cv2.setNumThreads(1)
    scene = draw_scene(settings.seed, clip)
    drive = Drive(scene, settings.seconds, settings.height, settings.width, settings.noise)
    times = [float(i / Fraction(settings.fps)) for i in range(settings.num_frames)]
    frames = [drive.frame(time) for time in times]
    name = f"{clip:06d}.mp4"
    images = np.stack([frame.image for frame in frames])
    encode_mp4(
        out / name, images, Fraction(settings.fps), quality=settings.quality, metadata={"title": caption(scene, frames)}
    )
    return _label_row(name, settings, scene, frames)


def _label_row(name: str, settings: CorpusSettings, scene: Scene, frames: list[Frame]) -> dict[str, Any]:
    return {
        "file": name,
        "seed": settings.seed,
        "clip": scene.clip,
        "caption": caption(scene, frames),
        "night": int(is_night(scene.time_of_day)),
        "crowdedness": crowdedness(frames),
        "time_of_day": scene.time_of_day,
        "fog": scene.fog,
        "cloud_cover": scene.cloud_cover,
        "surroundings": scene.surroundings,
        "lanes": scene.lanes,
        "camera_height_m": scene.camera.height_m,
        "camera_fov_deg": scene.camera.fov_deg,
        "fps": settings.fps,
        "licence": "Apache-2.0",
        "speed_mps": [frame.speed_mps for frame in frames],
        "curvature": [frame.curvature for frame in frames],
        "boxes": [[asdict(box) for box in frame.boxes] for frame in frames],
    }


def crowdedness(frames: list[Frame]) -> int:
    """Vehicles in sight, the mean over the frames, rounded."""
    return round(sum(len(frame.boxes) for frame in frames) / len(frames))


def caption(scene: Scene, frames: list[Frame]) -> str:
    """Say in words what the labels say."""
    count = crowdedness(frames)
    traffic = (
        "an empty road"
        if count == 0
        else "light traffic"
        if count < 5
        else "traffic"
        if count < 12
        else "heavy traffic"
    )
    place = {"city": "in a city", "suburb": "in a suburb", "rural": "in the country", "forest": "through a forest"}
    hour = scene.time_of_day
    when = "at night" if is_night(hour) else "at dawn" if hour < 7 else "at dusk" if hour > 17.2 else "by day"
    fog = " in fog" if scene.fog > 0.3 else ""
    return f"driving {place[scene.surroundings]} {when}{fog}, {traffic}"


def _identity(settings: CorpusSettings) -> bytes:
    return json.dumps(asdict(settings), sort_keys=True).encode()
