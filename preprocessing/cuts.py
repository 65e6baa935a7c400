"""Shots of a source: hard cuts, fades and dissolves, looked for at several frame rates. Pure functions over frames.

A hard cut is a frame that differs from the one before far more than its neighbourhood does. Slow transitions hide from
that, so frames further apart are compared as well (the cascade of Stable Video Diffusion, appendix E.2.1): a dissolve
is where the frame halfway is the mean of both ends, a fade where the picture is one flat colour in between.
"""

from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np

from pipelines.video_decode import VideoInfo
from preprocessing.config import Cuts

ROWS, COLUMNS = 36, 64
# Mean difference of two frames, 0 to 255, below which nothing has been cut; cuts between two nights are small.
_LEAST_CHANGE = 6.0
_LEAST_SLOW_CHANGE = 9.0
# Misfit of a mixture, as a share of the ends' distance: driving past things fits far worse.
_MOST_MISFIT = 0.29
_NEIGHBOURS = 3
_LEAST_COVER = 0.4
# Standard deviation of luminance in a frame that shows nothing.
_FLAT = 6.0
_DISSOLVE_S = (Fraction(1, 3), Fraction(2, 3), Fraction(4, 3))


def shrink(image: np.ndarray) -> np.ndarray:
    """A frame as cut detection sees it: (ROWS, COLUMNS, 3) uint8, hue turned into two opposing colours."""
    return cv2.cvtColor(cv2.resize(image, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2YCrCb)


def find_shots(frames: np.ndarray, info: VideoInfo, cuts: Cuts) -> list[tuple[Fraction, Fraction]]:
    """Split a source into shots.

    Args:
        frames: every frame of the source through `shrink`, (n, ROWS, COLUMNS, 3).
        info: of the source.
        cuts: thresholds.

    Returns:
        (time of first, time of last frame) of each shot, seconds; frames inside a transition belong to none.
    """
    return between(find_transitions(frames, float(info.fps), cuts.threshold), info, cuts.min_shot_s)


def between(
    transitions: Sequence[tuple[int, int]], info: VideoInfo, min_shot_s: float
) -> list[tuple[Fraction, Fraction]]:
    """The shots that some transitions leave, those shorter than `min_shot_s` left out; the first if all are."""
    count = len(info.pts)
    begin, shots = 0, []
    for first, after in [*transitions, (count, count)]:
        if first > begin:
            shots.append((begin, first - 1))
        begin = max(begin, after)
    times = [(info.pts[a] * info.time_base, info.pts[b] * info.time_base) for a, b in shots]
    return [(a, b) for a, b in times if b - a >= min_shot_s] or times[:1]


def find_transitions(frames: np.ndarray, fps: float, threshold: float) -> list[tuple[int, int]]:
    """Find transitions as (first frame that is no longer the old shot, first frame of the new one), in order.

    A hard cut at frame k is (k, k).
    """
    values = frames.astype(np.float32)
    found = [(k, k) for k in _hard_cuts(values, threshold)]
    found += _flat_runs(values)
    for seconds in _DISSOLVE_S:
        found += _dissolves(values, max(round(float(seconds) * fps), 4), found)
    return _merged(sorted(found))


def _change(values: np.ndarray, lag: int) -> np.ndarray:
    """Mean difference of each frame to the one `lag` before; the first `lag` are 0."""
    change = np.zeros(len(values), np.float32)
    if lag < len(values):
        change[lag:] = np.abs(values[lag:] - values[:-lag]).mean((1, 2, 3))
    return change


def _hard_cuts(values: np.ndarray, threshold: float) -> list[int]:
    change = _change(values, 1)
    cuts = []
    for k in np.flatnonzero(change >= _LEAST_CHANGE).tolist():
        around = [change[i] for i in range(max(k - _NEIGHBOURS, 1), min(k + _NEIGHBOURS + 1, len(change))) if i != k]
        usual = max(float(np.mean(sorted(around)[: max(len(around) - 1, 1)])) if around else 0.0, 1.0)
        if change[k] / usual >= threshold and _covers(values, k) and not _is_flash(values, k):
            cuts.append(k)
    return cuts


def _covers(values: np.ndarray, k: int) -> bool:
    """Say whether the picture changed nearly everywhere: a bus that has passed changes a part of it."""
    return bool((np.abs(values[k] - values[k - 1]).max(-1) > 4).mean() > _LEAST_COVER)


def _is_flash(values: np.ndarray, k: int) -> bool:
    """Say whether the picture before frame k comes back within a few frames, or k is where it comes back."""
    before = values[max(k - 4, 0) : k]
    after = values[k : k + 4]
    distance = np.abs(before[:, None] - after[None]).mean((2, 3, 4))
    return bool(distance.min() < 0.5 * _change_at(values, k))


def _change_at(values: np.ndarray, k: int) -> float:
    return float(np.abs(values[k] - values[k - 1]).mean())


def _flat_runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Fades through black, white or any one colour: where the picture is flat, and the slopes on both sides."""
    contrast = values[..., 0].std((1, 2))
    flat = contrast < _FLAT
    runs = []
    k = 0
    while k < len(flat):
        if not flat[k]:
            k += 1
            continue
        end = k
        while end < len(flat) and flat[end]:
            end += 1
        first, last = _slope(contrast, k, -1), _slope(contrast, end - 1, 1)
        if end - k < len(flat):
            runs.append((first, last + 1))
        k = end
    return runs


def _slope(contrast: np.ndarray, k: int, step: int) -> int:
    """Follow rising contrast away from a flat run."""
    while 0 <= k + step < len(contrast) and contrast[k + step] > contrast[k] * 1.02 + 0.05:
        k += step
    return k


def _dissolves(values: np.ndarray, lag: int, known: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of `lag` frames whose inner frames are mixtures of the outer ones."""
    if lag >= len(values):
        return []
    change = _change(values, lag)
    found: list[tuple[float, int]] = []
    for end in np.flatnonzero(change >= _LEAST_SLOW_CHANGE).tolist():
        begin = end - lag
        if any(first <= end and after >= begin for first, after in known):
            continue
        a, b = values[begin], values[end]
        inner = range(begin + max(lag // 4, 1), end, max(lag // 4, 1))
        misfit = max(_mixture_misfit(values[k], a, b) for k in inner)
        if misfit < _MOST_MISFIT:
            found.append((misfit, begin))
    runs: list[tuple[int, int]] = []
    for _, begin in sorted(found):
        if not any(first - lag < begin < after + lag for first, after in runs):
            runs.append((begin + 1, begin + lag))
    return runs


def _mixture_misfit(frame: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """How far a frame is from the nearest mixture of two others, as a share of their distance."""
    difference = (b - a).ravel()
    share = float(np.clip(difference @ (frame - a).ravel() / (difference @ difference), 0, 1))
    if not 0.08 < share < 0.92:
        return 1.0
    return float(np.abs(frame - a - share * (b - a)).mean() / np.abs(b - a).mean())


def _merged(transitions: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, after in transitions:
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], after))
        else:
            merged.append((first, after))
    return merged
