import dataclasses
import math

import numpy as np
import pytest

from preprocessing.synthetic.ground import headlight, street_light
from preprocessing.synthetic.light import display, display_colour
from preprocessing.synthetic.render import Drive
from preprocessing.synthetic.road import Road
from preprocessing.synthetic.scene import Scene, draw_scene


def day(clip: int = 3, **changes: object) -> Scene:
    scene = dataclasses.replace(draw_scene(0, clip), time_of_day=11.0, fog=0.0, cloud_cover=0.1)
    return dataclasses.replace(scene, **changes)  # type: ignore[arg-type]


def test_same_seed_gives_the_same_pixels_and_boxes() -> None:
    first, second = (Drive(draw_scene(2, 7), 3.0, 48, 80, 0.01) for _ in range(2))
    second.frame(0.4)
    a, b = first.frame(1.5), second.frame(1.5)
    np.testing.assert_array_equal(a.image, b.image)
    assert a.boxes == b.boxes
    assert not np.array_equal(a.image, Drive(draw_scene(2, 8), 3.0, 48, 80, 0.01).frame(1.5).image)


def test_another_size_shows_the_same_drive() -> None:
    scene = day(density=30.0, lanes=2)
    small, large = (Drive(scene, 3.0, height, 2 * height).frame(2.0) for height in (64, 192))
    shrunk = large.image.reshape(64, 3, 128, 3, 3).mean((1, 3))
    assert np.abs(shrunk - small.image).mean() < 6
    near = {box.vehicle: box.box for box in large.boxes if box.visible_px > 1500}
    also = {box.vehicle: box.box for box in small.boxes}
    assert len(near) >= 2
    for vehicle, box in near.items():
        np.testing.assert_allclose(also[vehicle], box, atol=0.03)


def test_boxes_hold_what_changes_when_the_vehicle_is_taken_away() -> None:
    drive = Drive(day(density=25.0, lanes=2), 3.0, 128, 256)
    frame = drive.frame(1.0)
    box = max(frame.boxes, key=lambda box: box.visible_px)
    # Move the vehicle out of the world; sun and headlights off, so that its shadow does not move the picture elsewhere.
    drive.traffic.s[:, box.vehicle] = -5e3
    without = drive.frame(1.0)
    changed = np.abs(frame.image.astype(int) - without.image).max(2) > 24
    x1, y1, x2, y2 = np.array(box.box) * (256, 128, 256, 128)
    rows, columns = np.nonzero(changed)
    assert columns.min() >= x1 - 8
    assert rows.min() >= y1 - 2
    inside = (columns >= x1 - 1) & (columns <= x2 + 1) & (rows >= y1 - 1) & (rows <= y2 + 1)
    assert inside.mean() > 0.75
    # And tight: every side of the box is touched.
    assert abs(columns[inside].min() - x1) <= 2
    assert abs(rows[inside].min() - y1) <= 2
    assert abs(columns[inside].max() + 1 - x2) <= 2


def test_a_hidden_vehicle_has_no_box_and_a_half_hidden_one_a_smaller_box() -> None:
    scene = day(density=1.5, lanes=2, curvature=0.0, median_m=0.4)
    drive = Drive(scene, 3.0, 128, 256)
    traffic, own = drive.traffic, drive.traffic.d[0, 0]
    others = [i for i in range(1, traffic.s.shape[1]) if traffic.vehicles.direction[i] > 0][:2]
    front, behind = others
    traffic.vehicles.kind[front], traffic.vehicles.kind[behind] = "truck", "hatchback"
    traffic.s[:, 1:] = -5e3

    def put(vehicle: int, s: float, d: float) -> None:
        traffic.s[:, vehicle], traffic.d[:, vehicle] = s, d

    put(behind, 40.0, own)
    alone = drive.frame(0.0).boxes
    put(front, 22.0, own)
    hidden = drive.frame(0.0).boxes
    put(behind, 40.0, own + 2.6)
    beside = drive.frame(0.0).boxes
    assert [box.kind for box in alone] == ["hatchback"]
    assert [box.kind for box in hidden] == ["truck"]
    partly = next(box for box in beside if box.kind == "hatchback")
    assert 6 < partly.visible_px < 0.9 * alone[0].visible_px
    assert partly.box[2] - partly.box[0] < 0.9 * (alone[0].box[2] - alone[0].box[0])


def test_night_is_darker_and_lamps_shine() -> None:
    scene = day(clip=4, density=25.0)
    bright = Drive(scene, 2.0, 64, 128).frame(0.5).image
    dark = Drive(dataclasses.replace(scene, time_of_day=23.0), 2.0, 64, 128).frame(0.5).image
    assert dark.mean() < 0.55 * bright.mean()
    assert dark.max() > 200


def test_fog_takes_contrast_away() -> None:
    clear, foggy = (Drive(day(fog=fog), 2.0, 64, 128).frame(0.5).image for fog in (0.0, 0.8))
    edges = [np.abs(np.diff(image[24:34].astype(int), axis=1)).mean() for image in (foggy, clear)]
    assert edges[0] < 0.6 * edges[1]


def test_still_parts_of_the_picture_do_not_crawl() -> None:
    """Lane marks pass by smoothly: a hundredth of a second changes the picture by little everywhere."""
    drive = Drive(day(density=1.5), 2.0, 64, 128)
    a, b = (drive.frame(time).image.astype(int) for time in (1.0, 1.002))
    assert np.abs(a - b).mean() < 0.5
    assert np.percentile(np.abs(a - b), 99.5) < 12


def test_one_colour_and_many_use_the_same_curve() -> None:
    linear = np.random.default_rng(0).uniform(-0.1, 2, (5, 3))
    np.testing.assert_allclose([display_colour(*row.tolist()) for row in linear], display(linear))


def test_one_place_and_many_have_the_same_light() -> None:
    scene, rng = day(lamp_spacing_m=31.0), np.random.default_rng(0)
    right, forward = rng.uniform(-20, 20, 50), rng.uniform(0.5, 80, 50)
    beam = [headlight(*place, math) for place in zip(right.tolist(), forward.tolist(), strict=True)]
    street = [street_light(scene, *place, math) for place in zip(forward.tolist(), right.tolist(), strict=True)]
    np.testing.assert_allclose(beam, headlight(right, forward))
    np.testing.assert_allclose(street, street_light(scene, forward, right))


def test_an_empty_road_has_no_boxes() -> None:
    drive = Drive(day(surroundings="city"), 1.0, 48, 64)
    drive.traffic.s[:, 1:] = -5e3
    assert drive.frame(0.5).boxes == ()


@pytest.mark.parametrize("d", [-7.0, 0.0, 5.5])
def test_road_coordinates_are_metres(d: float) -> None:
    road = Road(day(curvature=0.002), -100.0, 800.0)
    s = np.linspace(-50, 700, 400)
    east, north = road.locate(s, d)
    steps = np.hypot(np.diff(east), np.diff(north)) / np.diff(s)
    curvature = np.interp((s[1:] + s[:-1]) / 2, road.s, road.curvature)
    np.testing.assert_allclose(steps, 1 - curvature * d, atol=2e-3)


def test_a_longer_road_repeats_a_shorter_one() -> None:
    short, long = Road(day(), -100.0, 300.0), Road(day(), -700.0, 2000.0)
    np.testing.assert_array_equal(
        short.locate(np.array([-90.0, 3.0, 250.0]), 1.0), long.locate(np.array([-90.0, 3.0, 250.0]), 1.0)
    )
