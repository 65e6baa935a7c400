from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from pipelines.video_decode import VideoInfo
from preprocessing.config import Cuts
from preprocessing.cuts import find_shots, find_transitions, shrink
from preprocessing.synthetic.render import Drive
from preprocessing.synthetic.scene import draw_scene

FPS = 12


@pytest.fixture(scope="module")
def shots() -> list[np.ndarray]:
    drives = [Drive(draw_scene(5, clip), 3.0, 54, 96, 0.004) for clip in range(6)]
    return [np.stack([shrink(drive.frame(i / FPS).image) for i in range(36)]).astype(np.float32) for drive in drives]


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.clip(np.concatenate(parts), 0, 255).astype(np.uint8)


def test_hard_cuts_are_found_to_the_frame(shots: list[np.ndarray]) -> None:
    lengths = [30, 17, 36, 22, 9, 36]
    frames = joined([shot[:length] for shot, length in zip(shots, lengths, strict=True)])
    expected = np.cumsum(lengths)[:-1].tolist()
    assert find_transitions(frames, FPS, 3.0) == [(k, k) for k in expected]


def test_a_steady_drive_has_no_cut_and_a_flash_is_none(shots: list[np.ndarray]) -> None:
    assert all(find_transitions(joined([shot]), FPS, 3.0) == [] for shot in shots)
    flashed = shots[0].copy()
    flashed[14:16] = np.minimum(flashed[14:16] + 150, 255)
    assert find_transitions(joined([flashed]), FPS, 3.0) == []


def test_fades_and_dissolves_are_found_where_they_are(shots: list[np.ndarray]) -> None:
    dark = np.array((16.0, 128.0, 128.0), np.float32)
    fade = (np.arange(8, 0, -1) / 9)[:, None, None, None]
    frames = joined(
        [
            shots[1][:20],
            shots[1][20:28] * fade + dark * (1 - fade),
            shots[2][:8] * fade[::-1] + dark * (1 - fade[::-1]),
            shots[2][8:],
        ]
    )
    [(first, after)] = find_transitions(frames, FPS, 3.0)
    assert 18 <= first <= 28
    assert 28 <= after <= 38
    mix = (np.arange(1, 9) / 9)[:, None, None, None]
    frames = joined([shots[2][:20], shots[2][20:28] * (1 - mix) + shots[5][:8] * mix, shots[5][8:]])
    found = find_transitions(frames, FPS, 3.0)
    assert len(found) == 1
    assert 17 <= found[0][0] <= 28
    assert 20 <= found[0][1] <= 32


def test_shots_leave_transitions_out_and_cover_the_rest(shots: list[np.ndarray]) -> None:
    frames = joined([shots[0][:20], shots[1][:3], shots[2][:24]])
    info = VideoInfo(
        pts=tuple(range(0, 47 * 100, 100)), key_pts=(0,), time_base=Fraction(1, 1200), height=54, width=96, rotation=0,
        codec="h264", pixel_format="yuv420p", has_audio=False,
    )  # fmt: skip
    assert find_shots(frames, info, Cuts(detect=True, min_shot_s=0.5)) == [
        (Fraction(0), Fraction(19, 12)),
        (Fraction(23, 12), Fraction(46, 12)),
    ]
