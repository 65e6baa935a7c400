"""Which clips are cut from a source: pure arithmetic on timestamps."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pipelines.shard_format import Bucket
from pipelines.video_decode import VideoInfo
from preprocessing.config import ClipForm

# A source may lack this share of a form's frame rate, so that 29.97 serves 30.
RATE_SLACK = Fraction(1, 20)


@dataclass(frozen=True, kw_only=True)
class Window:
    """One clip of a source: the frames shown nearest to its times.

    Attributes:
        start: time of the first frame, seconds.
        pts: of its frames, in the source's time base.
        bucket: its form and size.
    """

    start: Fraction
    pts: tuple[int, ...]
    bucket: Bucket


def choose_size(info: VideoInfo, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Pick the size whose aspect is nearest to the source's; of equal ones the larger that needs no enlarging."""
    aspect = math.log(info.width / info.height)

    def badness(size: tuple[int, int]) -> tuple[float, float, int]:
        height, width = size
        return (round(abs(math.log(width / height) - aspect), 6), max(upscale(info, size), 1.0), -height * width)

    return min(sizes, key=badness)


def upscale(info: VideoInfo, size: tuple[int, int]) -> float:
    """Factor by which a source must grow to cover a size."""
    return max(size[0] / info.height, size[1] / info.width)


def cut_windows(
    info: VideoInfo, shots: Sequence[tuple[Fraction, Fraction]], form: ClipForm, size: tuple[int, int]
) -> Iterator[Window]:
    """Cut clips of one form out of each shot, back to back or every `stride_s`.

    Args:
        info: of the source.
        shots: (time of first frame, time of last frame), seconds.
        form: of the clips.
        size: (height, width).

    Yields:
        Windows in order of time; none if the source has fewer frames per second than the form asks for.
    """
    if form.num_frames > 1 and info.fps < form.rate * (1 - RATE_SLACK):
        return
    bucket = Bucket(num_frames=form.num_frames, height=size[0], width=size[1], rate=str(form.rate))
    span = (form.num_frames - 1) / form.rate
    for begin, end in shots:
        count = math.floor((end - begin - span) / form.stride) + 1
        for number in range(max(count, 0)):
            start = begin + number * form.stride
            pts = info.clip_pts(start, form.num_frames, form.rate)
            # A gap in the source, or a rate just above the source's, would show one frame twice.
            if len(set(pts)) == len(pts) and _in_time(info, start, form, pts):
                yield Window(start=start, pts=pts, bucket=bucket)


def clip_id(source_digest: str, window: Window) -> str:
    """Identify a clip by content, time, rate and size: the same wherever and whenever it is cut."""
    name = f"{source_digest} {window.pts} {window.bucket.name}"
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _in_time(info: VideoInfo, start: Fraction, form: ClipForm, pts: Sequence[int]) -> bool:
    """Say whether each frame lies within half a target interval of its time."""
    half = 1 / (2 * form.rate)
    return all(abs(time * info.time_base - start - k / form.rate) <= half for k, time in enumerate(pts))
