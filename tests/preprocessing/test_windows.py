import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.video_decode import VideoInfo
from preprocessing.config import ClipForm
from preprocessing.windows import choose_size, clip_id, cut_windows, upscale


def make_info(pts: list[int], time_base: Fraction = Fraction(1, 1000), size: tuple[int, int] = (144, 256)) -> VideoInfo:
    return VideoInfo(
        pts=tuple(pts), key_pts=(pts[0],), time_base=time_base, height=size[0], width=size[1],
        rotation=0, codec="h264", pixel_format="yuv420p", has_audio=False,
    )  # fmt: skip


def steady(count: int, rate: Fraction, start: int = 0) -> VideoInfo:
    return make_info([start + round(i * 90000 / rate) for i in range(count)], Fraction(1, 90000))


def cut(info: VideoInfo, form: ClipForm) -> list[tuple[int, ...]]:
    return [window.pts for window in cut_windows(info, [(info.start, info.end)], form, (64, 128))]


RATES = st.sampled_from([Fraction(10), Fraction(24000, 1001), Fraction(25), Fraction(30), Fraction(60000, 1001)])


@settings(max_examples=80, deadline=None)
@given(
    rate=RATES,
    count=st.integers(1, 200),
    start=st.integers(0, 10**6),
    num_frames=st.integers(1, 9),
    fps=st.sampled_from(["15/8", "2", "4", "15/2", "10", "30"]),
    stride=st.sampled_from([0.0, 0.5, 1.0, 2.5]),
)
def test_windows_of_a_steady_source(
    rate: Fraction, count: int, start: int, num_frames: int, fps: str, stride: float
) -> None:
    info, form = steady(count, rate, start), ClipForm(num_frames=num_frames, fps=fps, stride_s=stride)
    windows = list(cut_windows(info, [(info.start, info.end)], form, (64, 128)))
    span = (num_frames - 1) / form.rate
    if rate >= form.rate:
        # Complete: as many as fit, by counting seconds.
        assert len(windows) == max(math.floor((info.end - info.start - span) / form.stride) + 1, 0)
    for window in windows:
        assert (window.start - info.start) % form.stride == 0
        for k, pts in enumerate(window.pts):
            # Within half a source frame of its time (timestamps are rounded to the time base).
            assert abs(pts * info.time_base - window.start - k / form.rate) <= 1 / (2 * rate) + info.time_base
        assert list(window.pts) == sorted(set(window.pts))
        assert set(window.pts) <= set(info.pts)
    if form.stride >= num_frames / form.rate and windows and rate >= 2 * form.rate:
        taken = [pts for window in windows for pts in window.pts]
        assert len(taken) == len(set(taken))


@settings(max_examples=60, deadline=None)
@given(gaps=st.lists(st.integers(10, 400), min_size=2, max_size=60), fps=st.sampled_from(["2", "4", "8"]))
def test_windows_of_an_uneven_source_stay_within_half_an_interval(gaps: list[int], fps: str) -> None:
    pts = [0]
    for gap in gaps:
        pts.append(pts[-1] + gap)
    form = ClipForm(num_frames=4, fps=fps)
    for window in cut(make_info(pts), form):
        start = window[0]
        for k, time in enumerate(window):
            assert abs(Fraction(time - start, 1000) - k / form.rate) <= 1 / form.rate


def test_windows_never_cross_a_cut() -> None:
    info = steady(100, Fraction(25))
    shots = [(Fraction(0), Fraction(13, 10)), (Fraction(14, 10), Fraction(39, 10))]
    form = ClipForm(num_frames=5, fps="5", stride_s=0.2)
    windows = list(cut_windows(info, shots, form, (64, 128)))
    for window in windows:
        times = [pts * info.time_base for pts in window.pts]
        assert any(begin <= times[0] and times[-1] <= end for begin, end in shots)
    assert len(windows) == 3 + 9


def test_a_slow_source_gives_no_fast_clips_but_29_97_serves_30() -> None:
    assert cut(steady(50, Fraction(10)), ClipForm(num_frames=5, fps="30")) == []
    assert len(cut(steady(61, Fraction(30000, 1001)), ClipForm(num_frames=5, fps="30"))) > 10


def test_a_hole_in_the_source_gives_no_clip_there() -> None:
    pts = [i * 100 for i in range(20) if not 8 <= i <= 13]
    windows = cut(make_info(pts), ClipForm(num_frames=3, fps="5"))
    assert windows
    assert all(b - a == 200 for window in windows for a, b in pairwise(window))


def test_size_follows_the_aspect_and_reports_enlarging() -> None:
    sizes = [(320, 512), (384, 384), (512, 320)]
    assert choose_size(make_info([0], size=(1080, 1920)), sizes) == (320, 512)
    assert choose_size(make_info([0], size=(1920, 1080)), sizes) == (512, 320)
    assert choose_size(make_info([0], size=(500, 480)), sizes) == (384, 384)
    assert upscale(make_info([0], size=(32, 128)), (64, 128)) == 2


def test_clip_id_depends_on_content_frames_rate_and_size_alone() -> None:
    first, *_ = cut_windows(
        steady(60, Fraction(30)), [(Fraction(0), Fraction(2))], ClipForm(num_frames=4, fps="4"), (64, 128)
    )
    again, *_ = cut_windows(
        steady(60, Fraction(30)), [(Fraction(0), Fraction(2))], ClipForm(num_frames=4, fps="4"), (64, 128)
    )
    larger, *_ = cut_windows(
        steady(60, Fraction(30)), [(Fraction(0), Fraction(2))], ClipForm(num_frames=4, fps="4"), (128, 256)
    )
    assert clip_id("a", first) == clip_id("a", again)
    assert len({clip_id("a", first), clip_id("b", first), clip_id("a", larger)}) == 3


def test_forms_that_make_no_sense_are_refused() -> None:
    for changes in ({"fps": "0"}, {"fps": "x"}, {"fps": "1/0"}, {"num_frames": 0}, {"stride_s": -1.0}):
        with pytest.raises(ValueError, match=r"fps|num_frames"):
            ClipForm(**({"num_frames": 2, "fps": "3"} | changes))  # type: ignore[arg-type]
