import dataclasses

import numpy as np
import pytest

from preprocessing.synthetic.scene import draw_scene
from preprocessing.synthetic.traffic import Traffic


def crowded(clip: int) -> Traffic:
    return Traffic(dataclasses.replace(draw_scene(5, clip), density=42.0, lanes=3, median_m=1.2), 12.0)


@pytest.mark.parametrize("clip", range(4))
def test_vehicles_never_overlap(clip: int) -> None:
    traffic = crowded(clip)
    length, width = traffic.vehicles.length_m, traffic.vehicles.width_m
    for s, d in zip(traffic.s[::4], traffic.d[::4], strict=True):
        along = np.abs(s[:, None] - s[None, :]) < (length[:, None] + length[None, :]) / 2
        across = np.abs(d[:, None] - d[None, :]) < (width[:, None] + width[None, :]) / 2
        both = along & across
        np.fill_diagonal(both, False)
        assert not both.any(), np.argwhere(both)


def test_drivers_change_lanes_and_keep_to_their_side() -> None:
    changes = 0
    for clip in range(3):
        traffic = crowded(clip)
        assert (np.sign(traffic.d) == traffic.vehicles.direction).all()
        changes += int((np.ptp(traffic.d, axis=0) > 2.5).sum())
    assert changes >= 3


def test_nobody_drives_backwards_or_jumps() -> None:
    traffic = crowded(1)
    steps = np.diff(traffic.s, axis=0) * traffic.vehicles.direction
    assert steps.min() >= 0
    assert steps.max() < 40 * 0.05
    assert np.abs(np.diff(traffic.d, axis=0)).max() < 0.12


def test_the_camera_starts_at_zero_whatever_the_warm_up() -> None:
    traffic = crowded(2)
    assert traffic.s[0, 0] == 0
    s, d, speed, yaw, _ = traffic.at(0.025)
    assert 0 < s[0] < 2
    oncoming = traffic.vehicles.direction < 0
    assert (np.abs(yaw[oncoming]) > 3.0).mean() > 0.9
    assert len(d) == len(speed)
