"""Videos at the edges: a clip of frames from a file, frames to MP4, sheets of frames to look at. PyAV is the codec."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch

from pipelines.tensors import VideoFrames
from pipelines.video_decode import Source, VideoInfo, decode, fit, probe
from pipelines.video_encode import encode_mp4

Rate = Fraction | float | int


def read_clip(
    source: Source,
    *,
    num_frames: int,
    fps: Rate | None = None,
    start_s: Rate = 0,
    size: tuple[int, int] | None = None,
    info: VideoInfo | None = None,
) -> VideoFrames:
    """Read frames at a steady rate; each is the source's frame shown nearest to its time.

    Args:
        source: path, URL or seekable file.
        num_frames: how many.
        fps: target rate; default the source's mean rate.
        start_s: time of the first frame after the source's first, seconds.
        size: (height, width) to fit; what sticks out is cut off evenly on both sides. Default the source's own.
        info: of `source`, if it has been probed already.

    Raises:
        VideoError: if the file is no video or a frame cannot be decoded.
        ValueError: if the clip would end after the source.
    """
    info = info or probe(source)
    rate = Fraction(fps).limit_denominator(1001) if fps else info.fps
    start = info.start + Fraction(start_s)
    end = start + (num_frames - 1) / rate
    # Half a frame beyond the last one is still nearest to it.
    if end > info.end + 1 / (2 * info.fps):
        raise ValueError(
            f"{num_frames} frames at {float(rate):g} fps from {float(start_s):g} s end at "
            f"{float(end - info.start):.3f} s, but the source lasts {float(info.end - info.start):.3f} s; "
            "ask for fewer or start earlier"
        )
    wanted = info.clip_pts(start, num_frames, rate)
    height, width = size or (info.height, info.width)
    images = {pts: fit(image, height, width, info) for pts, image in decode(source, info, wanted)}
    return torch.from_numpy(np.stack([images[pts] for pts in wanted]))


def write_mp4(
    path: str | Path,
    frames: VideoFrames,
    fps: Rate,
    *,
    quality: int = 18,
    preset: str = "medium",
    metadata: dict[str, str] | None = None,
) -> None:
    """Write H.264 that plays everywhere (yuv420p, index in front): same frames, same bytes, whole file or none.

    Args:
        path: local file; an existing one is replaced.
        frames: RGB; height and width even.
        fps: exact if given as a Fraction.
        quality: x264's constant rate factor, 0 (lossless) to 51.
        preset: x264's; "superfast" takes a quarter of the time of "medium" and a fifth more bytes at equal error.
        metadata: tags such as title and comment.

    Raises:
        ValueError: if there are no frames or a side is odd.
    """
    encode_mp4(
        path, frames.numpy(), Fraction(fps).limit_denominator(1001), quality=quality, preset=preset, metadata=metadata
    )


def contact_sheet(rows: Sequence[VideoFrames], *, columns: int = 8, scale: int = 1) -> bytes:
    """Lay clips out as a PNG: one clip a row, `columns` frames evenly spread over it.

    Args:
        rows: clips of one size.
        columns: frames shown of each.
        scale: whole-number enlargement.

    Returns:
        The PNG file's bytes.
    """
    lines = []
    for clip in rows:
        picks = np.linspace(0, len(clip) - 1, min(columns, len(clip))).round().astype(int)
        line = np.concatenate([clip[int(i)].numpy() for i in picks], axis=1)
        lines.append(np.kron(line, np.ones((scale, scale, 1), np.uint8)))
    width = max(line.shape[1] for line in lines)
    sheet = np.concatenate([np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0))) for line in lines])
    return cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()
