"""Finished videos as they come: frames to an MP4 or a folder of PNG pictures, in memory that does not grow."""

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from pipelines.tensors import VideoFrames
from pipelines.video_encode import encode_stream

MAX_DENOMINATOR = 1001


def check_output(out: Path) -> None:
    """Refuse a place that cannot be written, before any work is done.

    Raises:
        ValueError: if the suffix is neither .mp4 nor none, or a folder stands where a file is wanted.
    """
    if out.suffix not in (".mp4", ""):
        raise ValueError(f"out {str(out)!r}: give a name that ends in .mp4, or a folder for PNG pictures")
    if out.suffix == ".mp4" and out.is_dir():
        raise ValueError(f"out {str(out)!r} is a folder; give the name of an MP4 file")
    if out.suffix == "" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out {str(out)!r} is not an empty folder; give a new name for PNG pictures, or one in .mp4")


def write_video(out: Path, parts: Iterable[VideoFrames], fps: float, metadata: Mapping[str, str]) -> None:
    """Write parts of a clip as they come.

    Args:
        out: name of an MP4, or a folder for numbered PNG pictures.
        parts: consecutive frames.
        fps: of the MP4.
        metadata: tags of the MP4.
    """
    check_output(out)
    images = (image.numpy() for part in parts for image in part)
    if out.suffix == ".mp4":
        encode_stream(out, images, Fraction(fps).limit_denominator(MAX_DENOMINATOR), metadata=metadata)
        return
    out.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        (out / f"{number:06d}.png").write_bytes(_png(image))


def read_picture(path: Path, size: tuple[int, int]) -> VideoFrames:
    """Read a picture as a clip of one frame, scaled to cover `size` (height, width) and cut evenly on both sides.

    Raises:
        ValueError: if the file is missing or no picture.
    """
    if not path.is_file():
        raise ValueError(f"no picture at {str(path)!r}; give a PNG or JPEG file")
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{str(path)!r} is no picture that can be read; give a PNG or JPEG file")
    height, width = size
    scale = max(height / picture.shape[0], width / picture.shape[1])
    whole = max(width, round(picture.shape[1] * scale)), max(height, round(picture.shape[0] * scale))
    # Averaging over areas when shrinking leaves no aliases.
    scaled = cv2.resize(picture, whole, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (whole[1] - height) // 2, (whole[0] - width) // 2
    cut = scaled[top : top + height, left : left + width, ::-1]
    return torch.from_numpy(np.ascontiguousarray(cut))[None]


def watch(parts: Iterable[VideoFrames], kept: list[VideoFrames], num_frames: int, count: int) -> Iterator[VideoFrames]:
    """Pass frames on, keeping `count` of them, evenly spread, in `kept`."""
    wanted = set(np.linspace(0, num_frames - 1, min(count, num_frames)).round().astype(int).tolist())
    seen = 0
    for part in parts:
        kept.extend(part[i : i + 1] for i in range(len(part)) if seen + i in wanted)
        seen += len(part)
        yield part


def _png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()
