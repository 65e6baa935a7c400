"""Real clips to compare with: windows of labelled videos, dealt to two halves by video."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.scenes import Scene
from pipelines.shard_format import Box
from pipelines.video_decode import VideoError, VideoInfo, probe
from training.sources import VIDEO_SUFFIXES

LABELS = "labels.parquet"
MAX_FPS = 30
MIN_BOX = 1 / 32
"""Boxes narrower than this share of the width are not asked for: eight pixels of 256."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where a real clip lies, and what it shows.

    Attributes:
        path: of the video.
        start_s: of the clip in it, seconds.
        fps: at which it is read, as a fraction.
        num_frames: its length.
        scene: its labels, open where there are none.
        boxes: vehicles of its first frame, the largest first.
        caption: what it shows in words; empty if nobody said.
    """

    path: str
    start_s: float
    fps: str
    num_frames: int
    scene: Scene
    boxes: tuple[Box, ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class Video:
    """A video of a corpus with its labels."""

    path: str
    info: VideoInfo
    labels: dict[str, Any]


def find_videos(folder: Path) -> list[Video]:
    """List the usable videos of a folder, with the labels of its labels.parquet files.

    Raises:
        ValueError: if there is none.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            try:
                found.append(Video(str(path), probe(str(path)), {}))
            except VideoError:
                continue
    if not found:
        raise ValueError(f"no usable video at {str(folder)!r}; give a folder with videos by --corpus")
    labels = {str(file.parent / row["file"]): row for file in folder.rglob(LABELS) for row in _read_labels(file)}
    return [Video(video.path, video.info, labels.get(video.path, {})) for video in found]


def _read_labels(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(
        file, columns=["file", "fps", "night", "crowdedness", "boxes", "caption"]
    ).to_pylist()
    return rows


def longest_clip(videos: Sequence[Video], fps: Fraction, wanted: int) -> int:
    """Frames at `fps` that nine tenths of the videos have, up to `wanted`."""
    lengths = sorted(int(_seconds(video) * fps) for video in videos)
    return max(1, min(wanted, lengths[len(lengths) // 10]))


def halves(videos: Sequence[Video], *, count: int, num_frames: int, fps: Fraction) -> tuple[list[Window], list[Window]]:
    """Two sets of `count` windows (fewer if the videos give no more), of different videos and equal size.

    Videos are dealt in turn, each giving its first window before any gives a second: clips of one video are alike.

    Raises:
        ValueError: if no video is long enough.
    """
    sets = tuple(_windows(videos[part::2], count=count, num_frames=num_frames, fps=fps) for part in (0, 1))
    if not all(sets):
        raise ValueError(
            f"{len(videos)} videos give no two sets of clips of {num_frames} frames at {float(fps):g} fps; "
            "give more or longer videos by --corpus"
        )
    size = min(len(windows) for windows in sets)
    return sets[0][:size], sets[1][:size]


def _windows(videos: Sequence[Video], *, count: int, num_frames: int, fps: Fraction) -> list[Window]:
    span, number = num_frames / fps, 0
    found: list[Window] = []
    while len(found) < count:
        start = number * span
        fitting = [video for video in videos if start + span <= _seconds(video)]
        if not fitting:
            break
        found += [_window(video, start, fps, num_frames) for video in fitting]
        number += 1
    return found[:count]


def _window(video: Video, start: Fraction, fps: Fraction, num_frames: int) -> Window:
    labels = video.labels
    boxes: list[Box] = []
    if labels:
        frame = min(round(start * Fraction(labels["fps"])), len(labels["boxes"]) - 1)
        boxes = [tuple(vehicle["box"]) for vehicle in labels["boxes"][frame]]
    return Window(
        path=video.path,
        start_s=float(start),
        fps=str(fps),
        num_frames=num_frames,
        scene=Scene(night=labels.get("night"), crowdedness=labels.get("crowdedness")),
        caption=labels.get("caption") or "",
        boxes=tuple(sorted(boxes, key=lambda box: -(box[2] - box[0]) * (box[3] - box[1]))),
    )


def large_boxes(window: Window) -> Window:
    """A window with only those boxes that are asked for."""
    return replace(window, boxes=tuple(box for box in window.boxes if box[2] - box[0] >= MIN_BOX))


def _seconds(video: Video) -> Fraction:
    return video.info.end - video.info.start + 1 / video.info.fps
