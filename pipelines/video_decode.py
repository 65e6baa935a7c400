"""Decode videos by exact time: list a file's frames without decoding, then decode only what is asked for. PyAV only.

Times are rational seconds (`Fraction`) from the file's own timestamps, so that variable frame rates, 23.976 and edit
lists need no special case. No torch here: decoder processes stay small.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import IOBase
from typing import cast

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

Source = str | IOBase


class VideoError(ValueError):
    """A video that cannot be used.

    Attributes:
        reason: short code: open, no_video, no_frames, truncated, timestamps, decode, missing_frame.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video stream holds, read from its packets.

    Attributes:
        pts: presentation timestamps of all shown frames, ascending, in units of `time_base`.
        key_pts: those of the key frames, where decoding can start.
        time_base: seconds per unit of pts.
        height, width: of a shown frame, after rotation and with square pixels.
        rotation: degrees counter-clockwise that the stored picture is turned by when shown: 0, 90, 180 or 270.
        codec, pixel_format: as FFmpeg names them.
        has_audio: whether there is sound, which is ignored.
    """

    pts: tuple[int, ...]
    key_pts: tuple[int, ...]
    time_base: Fraction
    height: int
    width: int
    rotation: int
    codec: str
    pixel_format: str
    has_audio: bool

    @property
    def start(self) -> Fraction:
        """Time of the first frame, seconds."""
        return self.pts[0] * self.time_base

    @property
    def end(self) -> Fraction:
        """Time of the last frame, seconds."""
        return self.pts[-1] * self.time_base

    @property
    def fps(self) -> Fraction:
        """Mean frame rate; 1 for a single frame."""
        return (len(self.pts) - 1) / (self.end - self.start) if len(self.pts) > 1 else Fraction(1)

    def nearest(self, times: Sequence[Fraction]) -> tuple[int, ...]:
        """For each time the pts of the frame shown nearest to it; of two equally near the earlier."""
        return tuple(_nearest(self.pts, time / self.time_base) for time in times)

    def clip_pts(self, start: Fraction, num_frames: int, fps: Fraction) -> tuple[int, ...]:
        """The pts of a clip of `num_frames` at `fps` that begins at `start` seconds."""
        return self.nearest([start + k / fps for k in range(num_frames)])


def probe(source: Source) -> VideoInfo:
    """List the frames of the first video stream.

    Packets are read, not decoded, but for the first frame; a stream whose packets carry no usable timestamps is
    decoded for them.

    Raises:
        VideoError: if the file cannot be opened, holds no video, or its first frame cannot be decoded.
    """
    with _open(source) as (container, stream):
        pts, keys = _packet_times(container, stream)
        if stream.time_base is None:
            raise VideoError("no_frames", "the video stream holds no frames")
        base, aspect, has_audio = stream.time_base, stream.sample_aspect_ratio, bool(container.streams.audio)
    with _open(source) as (container, stream):
        frames = container.decode(stream)
        first = _next_frame(frames)
        if first is None:
            raise VideoError("no_frames", "the video stream holds no frames")
        if not pts or first.pts not in pts:
            shown = [(frame.pts, frame.key_frame) for frame in [first, *_all_frames(frames)]]
            pts = sorted({time for time, _ in shown if time is not None})
            keys = [time for time, is_key in shown if is_key and time is not None]
        codec, pixel_format = stream.codec_context.name, stream.codec_context.pix_fmt or "unknown"
    if not pts:
        raise VideoError("timestamps", "no frame carries a timestamp")
    # Frames before the first that decodes (edit lists, leading pictures of an open group) are never shown.
    pts = [time for time in pts if first.pts is None or time >= first.pts]
    rotation = first.rotation % 360
    height, width = first.height, max(1, round(first.width * float(aspect or 1)))
    if rotation % 180:
        height, width = width, height
    return VideoInfo(
        pts=tuple(pts),
        key_pts=tuple(key for key in keys if key >= pts[0]) or (pts[0],),
        time_base=base,
        height=height,
        width=width,
        rotation=rotation,
        codec=codec,
        pixel_format=pixel_format,
        has_audio=has_audio,
    )


def decode(source: Source, info: VideoInfo, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode frames in one forward pass.

    Stretches without a wanted frame are passed over by key frame, and frames that no other refers to are not decoded
    unless wanted.

    Args:
        source: path, URL or seekable file.
        info: of the same source.
        wanted: pts out of `info.pts`.

    Yields:
        (pts, (H, W, 3) uint8 RGB) for each distinct wanted pts, ascending; stored size, rotated as shown.

    Raises:
        VideoError: if a wanted frame cannot be decoded.
    """
    todo = sorted(set(wanted))
    reformatter = VideoReformatter()  # one for all frames: setting up takes longer than converting a small one
    # Containers without an index may seek past a frame; a second pass then reads on from the start.
    for may_seek in (True, False):
        if todo:
            with _open(source) as (container, stream):
                for frame in _decode_wanted(container, stream, info, todo, may_seek):
                    todo.remove(frame.pts or 0)
                    yield frame.pts or 0, _upright(reformatter.reformat(frame, format="rgb24"), info)
    if todo:
        raise VideoError("missing_frame", f"the frame at {float(todo[0] * info.time_base):.3f} s cannot be decoded")


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


def _decode_wanted(
    container: InputContainer, stream: VideoStream, info: VideoInfo, wanted: Sequence[int], may_seek: bool
) -> Iterator[VideoFrame]:
    todo = list(wanted)
    frames = _frames(container, stream, set(wanted))
    position: int | None = info.pts[0] - 1
    while todo and position is not None:
        key = _key_before(info.key_pts, todo[0])
        if may_seek and key > max(position, info.key_pts[0]):
            _seek(container, stream, key)
            frames = _frames(container, stream, set(wanted))
        position = yield from _frames_until_gap(frames, info, todo, may_seek)


def _frames_until_gap(
    frames: Iterator[VideoFrame], info: VideoInfo, todo: list[int], may_seek: bool
) -> Generator[VideoFrame, None, int | None]:
    """Hand out frames, taking them off `todo`, until a key frame lies between here and the next; None at the end."""
    for frame in frames:
        if frame.pts is None or frame.pts < todo[0]:
            continue
        if frame.pts > todo[0]:
            return None
        del todo[0]
        yield frame
        if not todo or (may_seek and _key_before(info.key_pts, todo[0]) > frame.pts):
            return frame.pts
    return None


def _frames(container: InputContainer, stream: VideoStream, wanted: set[int]) -> Iterator[VideoFrame]:
    try:
        for packet in container.demux(stream):
            if packet.pts is None or packet.pts in wanted or not _is_unreferenced(packet, stream):
                yield from packet.decode()
    except av.FFmpegError as err:
        raise VideoError("decode", f"a frame cannot be decoded: {err.strerror}") from err


def _is_unreferenced(packet: "Packet[VideoStream]", stream: VideoStream) -> bool:
    """Say whether no other frame refers to this one, by the container's flag or the H.264 header (nal_ref_idc = 0)."""
    extradata = stream.codec_context.extradata
    if packet.is_disposable or stream.codec_context.name != "h264" or not extradata or extradata[0] != 1:
        return packet.is_disposable
    content, place, length_bytes = memoryview(packet), 0, (extradata[4] & 3) + 1
    while place + length_bytes < len(content):
        header = content[place + length_bytes]
        if header & 31 in (1, 5):
            return header & 0x60 == 0
        place += length_bytes + int.from_bytes(content[place : place + length_bytes], "big")
    return False


def _seek(container: InputContainer, stream: VideoStream, key: int) -> None:
    try:
        container.seek(key, stream=stream)
    except av.FFmpegError:
        # Some containers have no index; decoding from the start finds the frame as well.
        container.seek(0)


def _key_before(key_pts: Sequence[int], pts: int) -> int:
    return key_pts[max(bisect_right(key_pts, pts) - 1, 0)]


def _nearest(pts: Sequence[int], place: Fraction) -> int:
    after = bisect_left(pts, place)
    candidates = pts[max(after - 1, 0) : after + 1]
    return min(candidates, key=lambda time: (abs(time - place), time))


def _upright(frame: VideoFrame, info: VideoInfo) -> np.ndarray:
    image = frame.to_ndarray()
    return np.ascontiguousarray(np.rot90(image, info.rotation // 90)) if info.rotation else image


def _packet_times(container: InputContainer, stream: VideoStream) -> tuple[list[int], list[int]]:
    """Sorted pts of all shown packets and of the key frames; nothing if any packet lacks one."""
    try:
        everything = [(p.pts, p.is_keyframe, p.is_discard) for p in container.demux(stream) if p.size]
    except av.FFmpegError as err:
        raise VideoError("truncated", f"the file cannot be read to its end: {err.strerror}") from err
    # Only the MP4 family counts its frames reliably.
    if "mp4" in container.format.name and len(everything) < stream.frames:
        raise VideoError("truncated", f"{len(everything)} of {stream.frames} frames are in the file")
    packets = [(pts, is_key) for pts, is_key, is_discard in everything if not is_discard]
    times = [pts for pts, _ in packets if pts is not None]
    if len(set(times)) != len(packets):
        return [], []
    return sorted(times), sorted(pts for pts, is_key in packets if is_key and pts is not None)


def _all_frames(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    while (frame := _next_frame(frames)) is not None:
        yield frame


def _next_frame(frames: Iterator[VideoFrame]) -> VideoFrame | None:
    try:
        return next(frames, None)
    except av.FFmpegError as err:
        raise VideoError("decode", f"a frame cannot be decoded: {err.strerror}") from err


@contextmanager
def _open(source: Source) -> Iterator[tuple[InputContainer, VideoStream]]:
    if not isinstance(source, str):
        source.seek(0)
    try:
        container = av.open(cast(str, source), mode="r")
    except (av.FFmpegError, UnicodeDecodeError) as err:
        raise VideoError("open", f"not a video that can be opened: {getattr(err, 'strerror', err)}") from err
    with container:
        if not container.streams.video:
            raise VideoError("no_video", "the file holds no video stream")
        stream = container.streams.video[0]
        # One thread: same result anywhere, and workers do not fight for cores.
        stream.codec_context.thread_count = 1
        # Damaged pictures are errors here, not something to be painted over.
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream
