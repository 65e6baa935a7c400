"""Videos at the edges: a clip of frames from a file, frames to MP4, sheets of frames to look at. PyAV is the codec."""

import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from pipelines.tensors import VideoFrames
from pipelines.video_decode import Source, VideoInfo, decode, probe

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


def fit(image: np.ndarray, height: int, width: int, info: VideoInfo | None = None) -> np.ndarray:
    """Scale an image (H, W, 3) to cover (height, width) and cut off evenly what sticks out.

    Shrinking averages over area; growing interpolates with cubics. With `info`, non-square pixels are set right.
    """
    shown = (info.height, info.width) if info else image.shape[:2]
    scale = max(height / shown[0], width / shown[1])
    # The part of the image that is kept, in its own pixels.
    keep_rows = image.shape[0] * height / scale / shown[0]
    keep_columns = image.shape[1] * width / scale / shown[1]
    top, left = round((image.shape[0] - keep_rows) / 2), round((image.shape[1] - keep_columns) / 2)
    cut = image[top : top + max(round(keep_rows), 1), left : left + max(round(keep_columns), 1)]
    if cut.shape[:2] == (height, width):
        return np.ascontiguousarray(cut)
    shrinks = cut.shape[0] >= height and cut.shape[1] >= width
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def write_mp4(
    path: str | Path,
    frames: VideoFrames,
    fps: Rate,
    *,
    quality: int = 18,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write H.264 that plays everywhere (yuv420p, index in front): same frames, same bytes, whole file or none.

    Args:
        path: local file; an existing one is replaced.
        frames: RGB; height and width even.
        fps: exact if given as a Fraction.
        quality: x264's constant rate factor, 0 (lossless) to 51.
        metadata: tags such as title and comment.

    Raises:
        ValueError: if there are no frames or a side is odd.
    """
    images = frames.numpy()
    num_frames, height, width, _ = images.shape
    if not num_frames or height % 2 or width % 2:
        raise ValueError(f"frames of shape {images.shape} cannot be written: at least one frame, even height and width")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", suffix=".mp4", dir=path.parent)
    os.close(descriptor)
    try:
        _encode(temporary, images, Fraction(fps).limit_denominator(1001), quality, metadata or {})
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _encode(path: str, images: np.ndarray, fps: Fraction, quality: int, metadata: dict[str, str]) -> None:
    options = {"movflags": "+faststart+use_metadata_tags", "fflags": "+bitexact"}
    with av.open(path, mode="w", format="mp4", container_options=options) as container:
        container.metadata.update(metadata)
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": str(quality), "preset": "medium", "threads": "1"}
        )
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


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
