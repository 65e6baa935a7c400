"""Pictures of clips for documents: captioned sheets of frames and animations, as WebP."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from pipelines.shard_format import Box
from pipelines.tensors import VideoFrames

Image = UInt8[np.ndarray, "H W 3"]
QUALITY = 80
CAPTION_HEIGHT = 20
GAP = 2


@dataclass(frozen=True)
class Row:
    """A clip of a sheet with the words above it."""

    caption: str
    clip: VideoFrames


def sheet(rows: Sequence[Row], *, columns: int, width: int) -> bytes:
    """Frames of clips, evenly spread, one clip a row under its caption.

    Args:
        rows: clips; of each, the first and the last frame are shown.
        columns: frames shown of each.
        width: of a frame in the sheet, pixels.
    """
    lines = [_line(row, columns, width) for row in rows]
    full = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, 0), (0, full - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    return cv2.imencode(".webp", np.concatenate(padded)[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1].tobytes()


def animation(rows: Sequence[Row], fps: float, *, across: int, width: int, quality: int = 60) -> bytes:
    """Clips of one length side by side, each under its caption, in a loop."""
    cells = [[_captioned(row.caption, _fitted(image, width)) for image in row.clip.numpy()] for row in rows]
    frames = [_grid([cell[time] for cell in cells], across) for time in range(min(map(len, cells)))]
    moving = cv2.Animation()
    moving.frames = [np.ascontiguousarray(frame[..., ::-1]) for frame in frames]
    moving.durations = [round(1000 / fps)] * len(frames)
    moving.loop_count = 0
    done, data = cv2.imencodeanimation(".webp", moving, [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not done:
        raise ValueError(f"an animation of {len(frames)} frames could not be encoded")
    return data.tobytes()


def with_boxes(image: VideoFrames, boxes: Sequence[Box]) -> VideoFrames:
    """Draw boxes on a clip of one frame."""
    drawn = np.ascontiguousarray(image[0].numpy())
    height, width = drawn.shape[:2]
    for x1, y1, x2, y2 in boxes:
        one, other = ((round(x * (width - 1)), round(y * (height - 1))) for x, y in ((x1, y1), (x2, y2)))
        cv2.rectangle(drawn, one, other, (255, 220, 0), 1)
    return torch.from_numpy(drawn)[None]


def _line(row: Row, columns: int, width: int) -> Image:
    picks = np.linspace(0, len(row.clip) - 1, min(columns, len(row.clip))).round().astype(int)
    images = [_fitted(row.clip[int(i)].numpy(), width) for i in picks]
    gap = np.full((images[0].shape[0], GAP, 3), 255, np.uint8)
    joined = np.concatenate([part for image in images for part in (image, gap)], axis=1)[:, :-GAP]
    return _captioned(row.caption, joined)


def _captioned(caption: str, image: Image) -> Image:
    strip = np.full((CAPTION_HEIGHT, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, caption, (2, CAPTION_HEIGHT - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([strip, image])


def _grid(cells: Sequence[Image], across: int) -> Image:
    blank = np.full_like(cells[0], 255)
    filled = [*cells, *[blank] * (-len(cells) % across)]
    rows = [np.concatenate(filled[start : start + across], axis=1) for start in range(0, len(filled), across)]
    return np.concatenate(rows)


def _fitted(image: Image, width: int) -> Image:
    if image.shape[1] == width:
        return image
    height = round(image.shape[0] * width / image.shape[1])
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
