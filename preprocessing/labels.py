"""Per-frame boxes of a labelled corpus, joined to clips by time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from pipelines.shard_format import Box
from preprocessing.sources import SYNTHETIC_LABELS

Boxes = tuple[tuple[Box, ...], ...]


@dataclass(frozen=True)
class FrameBoxes:
    """Boxes of a source's frames, which are `1 / fps` seconds apart."""

    fps: Fraction
    boxes: Sequence[Sequence[Sequence[float]]]

    def at(self, times: Sequence[Fraction]) -> Boxes:
        """Boxes of the frames nearest to some times since the source's start."""
        frames = [min(round(time * self.fps), len(self.boxes) - 1) for time in times]
        return tuple(tuple((b[0], b[1], b[2], b[3]) for b in self.boxes[frame]) for frame in frames)


class BoxLabels:
    """Label files of a corpus, each read once."""

    def __init__(self) -> None:
        self._read = lru_cache(maxsize=8)(_read_labels)

    def of(self, uri: str) -> FrameBoxes | None:
        """Boxes of a source, None if there are none."""
        path = PurePosixPath(uri)
        return self._read(uri.removesuffix(path.name) + SYNTHETIC_LABELS).get(path.name)


def crop_boxes(boxes: Boxes, shown: tuple[int, int], size: tuple[int, int]) -> Boxes:
    """Move boxes from the source's frame to the part of it that a clip of `size` keeps; boxes outside are dropped.

    Args:
        boxes: in [0, 1] of the source's width and height.
        shown: (height, width) of the source.
        size: (height, width) of the clip.
    """
    scale = max(size[0] / shown[0], size[1] / shown[1])
    keep = (size[1] / scale / shown[1], size[0] / scale / shown[0])

    def move(value: float, axis: int) -> float:
        return min(max((value - (1 - keep[axis]) / 2) / keep[axis], 0.0), 1.0)

    frames = []
    for frame in boxes:
        moved = [(move(x1, 0), move(y1, 1), move(x2, 0), move(y2, 1)) for x1, y1, x2, y2 in frame]
        frames.append(tuple(box for box in moved if box[2] > box[0] and box[3] > box[1]))
    return tuple(frames)


def crowdedness(boxes: Boxes) -> int:
    """Vehicles in sight, the mean over the clip's frames, rounded."""
    return round(sum(len(frame) for frame in boxes) / len(boxes))


def _read_labels(uri: str) -> Mapping[str, FrameBoxes]:
    try:
        content = storage.read_bytes(uri)
    except OSError:
        return {}
    table = pq.read_table(pa.BufferReader(content), columns=["file", "fps", "boxes"])
    return {row["file"]: FrameBoxes(Fraction(row["fps"]), _boxes(row["boxes"])) for row in table.to_pylist()}


def _boxes(frames: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[list[float]]]:
    return [[vehicle["box"] for vehicle in frame] for frame in frames]
