"""Encode frames as H.264 in MP4. No torch here: renderer processes stay small."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8


def encode_mp4(
    path: str | Path,
    images: UInt8[np.ndarray, "t H W 3"],
    fps: Fraction,
    *,
    quality: int = 18,
    preset: str = "medium",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an MP4 that plays everywhere; see `pipelines.video_io.write_mp4`.

    Raises:
        ValueError: if there are no frames or a side is odd.
    """
    encode_stream(path, images, fps, quality=quality, preset=preset, metadata=metadata)


def encode_stream(
    path: str | Path,
    images: Iterable[UInt8[np.ndarray, "H W 3"]],
    fps: Fraction,
    *,
    quality: int = 18,
    preset: str = "medium",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an MP4 frame by frame as the frames come, in constant memory; the same bytes as `encode_mp4` of them all.

    Raises:
        ValueError: if there are no frames or a side is odd; then no file is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", suffix=".mp4", dir=path.parent)
    os.close(descriptor)
    try:
        _encode(temporary, images, fps, {"crf": str(quality), "preset": preset}, metadata or {})
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _encode(
    path: str, images: Iterable[np.ndarray], fps: Fraction, codec: dict[str, str], metadata: Mapping[str, str]
) -> None:
    frames = iter(images)
    first = next(frames, None)
    if first is None or first.shape[0] % 2 or first.shape[1] % 2:
        size = "no frames" if first is None else f"frames of {first.shape[0]}x{first.shape[1]}"
        raise ValueError(f"{size} cannot be written: at least one frame, even height and width")
    options = {"movflags": "+faststart+use_metadata_tags", "fflags": "+bitexact"}
    # One thread, and no macroblock tree: x264's vector code for it reads past small pictures, so that the same frames
    # gave six different files in 300 tries at 64x48.
    codec = {**codec, "threads": "1", "x264-params": "mbtree=0"}
    with av.open(path, mode="w", format="mp4", container_options=options) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("libx264", rate=fps, options=codec)
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        for image in chain([first], frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
