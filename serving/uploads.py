"""Checking what callers upload: kind by content, size and pixels before anything is decoded whole."""

import io
from fractions import Fraction

import av
from av.error import FFmpegError
from PIL import Image, UnidentifiedImageError

from pipelines.video_decode import probe
from serving.config import Limits
from serving.errors import ApiError

_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")


def check_image(data: bytes, param: str, limits: Limits) -> bytes:
    """Check a picture and give it back as a plain RGB PNG, without metadata and in one frame.

    Raises:
        ApiError: not a PNG, JPEG or WebP, too large, or damaged.
    """
    _check_size(data, param, limits)
    try:
        # Opening reads the header only; other formats' decoders are never tried.
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as picture:
            pixels = picture.width * picture.height
            if pixels > limits.max_upload_pixels:
                raise _too_many(param, "pixels", pixels, limits.max_upload_pixels)
            plain = io.BytesIO()
            picture.convert("RGB").save(plain, "PNG")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise ApiError(400, "invalid_image", f"{param}: not a whole PNG, JPEG or WebP picture", param=param) from err
    return plain.getvalue()


def check_video(data: bytes, param: str, limits: Limits) -> bytes:
    """Check a video and give it back as it is.

    Raises:
        ApiError: not an MP4 or WebM with a video stream, too large or too long, or damaged.
    """
    _check_size(data, param, limits)
    try:
        # The container is named: FFmpeg's own guess would also open playlists, which name other files.
        with av.open(io.BytesIO(data), "r", format=_video_format(data, param)) as container:
            stream = container.streams.video[0]
            pixels = stream.codec_context.width * stream.codec_context.height
            if not 0 < pixels <= limits.max_upload_pixels:
                raise _too_many(param, "pixels", pixels, limits.max_upload_pixels)
            frames = len([packet for packet in container.demux(stream) if packet.size])
            if frames > limits.max_upload_frames:
                raise _too_many(param, "frames", frames, limits.max_upload_frames)
    except (FFmpegError, IndexError, ValueError) as err:
        raise ApiError(400, "invalid_video", f"{param}: not a whole MP4 or WebM video", param=param) from err
    if frames == 0:
        raise ApiError(400, "invalid_video", f"{param}: the video has no frame", param=param)
    return data


def num_frames_at(video: bytes, fps: float) -> int:
    """Frames that a checked video has at a frame rate."""
    info = probe(io.BytesIO(video))
    return max(1, int((info.end - info.start) * Fraction(fps).limit_denominator(1001)) + 1)


def _video_format(data: bytes, param: str) -> str:
    if data[4:8] == b"ftyp":
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    raise ApiError(400, "invalid_video", f"{param}: not an MP4 or WebM video by its content", param=param)


def _check_size(data: bytes, param: str, limits: Limits) -> None:
    if len(data) > limits.max_upload_bytes:
        raise _too_many(param, "bytes", len(data), limits.max_upload_bytes)


def _too_many(param: str, unit: str, value: int, limit: int) -> ApiError:
    return ApiError(400, "limit_exceeded", f"{param} has {value} {unit}; the limit is {limit}", param=param)
