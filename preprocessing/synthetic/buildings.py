"""Paint buildings: walls that face the camera, their windows (lit by night), and gable roofs on houses."""

import math
from functools import lru_cache

import numpy as np

from preprocessing.synthetic.camera import NEAR_M, Point
from preprocessing.synthetic.light import Colour
from preprocessing.synthetic.painter import Painter, to_fixed
from preprocessing.synthetic.roadside import Place, Surroundings
from preprocessing.synthetic.scenery import Building

Wall = tuple[Point, Point, float]

_LIT = ((0.95, 0.66, 0.30), (0.80, 0.62, 0.40), (0.62, 0.66, 0.70))
_TILES = ((0.20, 0.075, 0.045), (0.10, 0.095, 0.095), (0.15, 0.10, 0.07))
# Share of a wall that its windows cover.
_GLAZED = 0.26


def paint_building(painter: Painter, view: Surroundings, building: Building, middle: Place) -> None:
    """Paint one building as a new object; `middle` is the middle of its side towards the road."""
    corners, outward = _footprint(view, building, middle)
    reach = view.camera.width / 2 / view.camera.focal
    if all(forward < NEAR_M or abs(right) > reach * forward + 30 for right, forward in corners):
        return
    painter.begin_object()
    height = building.height_m * view.grown(building.s)
    if building.roof_m:
        _paint_roof(painter, view, building, corners, height)
    for side in range(4):
        a, b = corners[side], corners[(side + 1) % 4]
        if outward[side][0] * a[0] + outward[side][1] * a[1] < 0:
            sun = max(outward[side][0] * view.sun[0] + outward[side][1] * view.sun[2], 0.0)
            _paint_wall(painter, view, building, (a, b, height), sun, side)


def _footprint(view: Surroundings, building: Building, middle: Place) -> tuple[list[Point], list[Point]]:
    """Corners as camera (right, forward) and the outward normals of the four sides."""
    turn = float(view.road.heading_at(middle.s)) - view.camera.yaw
    ax, ay = math.sin(turn), math.cos(turn)
    side = math.copysign(1.0, building.d)
    ox, oy = ay * side, -ax * side
    x, y, half, deep = middle.right, middle.forward, building.along_m / 2, building.depth_m
    near, far = (x - ax * half, y - ay * half), (x + ax * half, y + ay * half)
    corners = [near, far, (far[0] + ox * deep, far[1] + oy * deep), (near[0] + ox * deep, near[1] + oy * deep)]
    return corners, [(-ox, -oy), (ax, ay), (ox, oy), (-ax, -ay)]


def _paint_wall(painter: Painter, view: Surroundings, building: Building, wall: Wall, sun: float, side: int) -> None:
    a, b, height = wall
    shown = _before_camera(a, b)
    if shown is None:
        return
    (x1, z1), (x2, z2) = shown
    pixels = [view.camera.pixel(*point) for point in ((x1, 0.0, z1), (x2, 0.0, z2), (x2, height, z2), (x1, height, z1))]
    if not painter.in_view(pixels):
        return
    place = view.place((x1 + x2) / 2, (z1 + z2) / 2, building.s, building.d * 0.8)
    base = view.colour(building.wall, place, sun=sun, facing=0.25)
    columns = max(int(math.dist(a, b) / 2.9), 1)
    panes, dark_panes = _windows(building.lit_seed, building.lit_share, side, building.floors, columns)
    dark, glow = _pane_colours(view, building, place)
    burning = (1 - dark_panes / len(panes)) * view.light.lamps
    # Windows finer than a pixel are shown as their mean, so that far walls neither flicker nor change brightness.
    width = 0.48 * abs(pixels[1][0] - pixels[0][0]) * math.dist(a, b) / max(math.dist(*shown), 0.1) / columns
    clear = min(max((width - 0.55) / 1.1, 0.0), 1.0)
    body = _mix(_mix(base, _mix(dark, glow, burning), _GLAZED), base, clear)
    painter.stand(to_fixed(pixels), body)
    if clear > 0:
        axes = np.array(((b[0] - a[0], 0.0, b[1] - a[1]), (0.0, height, 0.0)))
        corners = (panes.reshape(-1, 2) @ axes + (a[0], 0.0, a[1])).reshape(-1, 4, 3)
        if min(a[1], b[1]) <= NEAR_M:
            ahead = (corners[..., 2] > NEAR_M).all(1)
            corners, dark_panes = corners[ahead], int(ahead[:dark_panes].sum())
        fixed = list(to_fixed(view.camera.project(corners)))
        painter.fill_many(fixed[:dark_panes], _mix(body, dark, clear))
        painter.fill_many(fixed[dark_panes:], _mix(body, glow, clear))


def _before_camera(a: Point, b: Point) -> tuple[Point, Point] | None:
    """The part of a wall's foot before the near plane."""
    if a[1] < NEAR_M and b[1] < NEAR_M:
        return None
    if a[1] >= NEAR_M and b[1] >= NEAR_M:
        return a, b
    share = (NEAR_M - a[1]) / (b[1] - a[1])
    cut = (a[0] + share * (b[0] - a[0]), NEAR_M)
    return (cut, b) if a[1] < NEAR_M else (a, cut)


def _pane_colours(view: Surroundings, building: Building, place: Place) -> tuple[Colour, Colour]:
    """Display colours of dark and of lit windows."""
    lamps = view.light.lamps
    tint = _LIT[building.lit_seed % 3]
    shining = [c * 0.75 * lamps + mirror * (1 - 0.8 * lamps) for c, mirror in zip(tint, view.mirror, strict=True)]
    return view.hazed(view.mirror, place), view.hazed(shining, place)


@lru_cache(maxsize=4096)
def _windows(seed: int, share: float, side: int, floors: int, columns: int) -> tuple[np.ndarray, int]:
    """Corners (floors * columns, 4, 2) of a side's windows as shares of its length and height; how many are dark.

    Dark windows come first.
    """
    x = (np.arange(columns) + np.array([[0.26], [0.74]])) / columns
    y = (np.arange(floors) + np.array([[0.32], [0.76]])) / floors * 0.94
    corners = [
        np.stack(np.broadcast_arrays(x[i][None, :], y[j][:, None]), axis=-1)
        for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))
    ]
    panes = np.stack(corners, axis=2)
    lit = (np.random.default_rng(seed).random((4, 16, 16)) < share)[side, :floors, :columns]
    return np.concatenate([panes[~lit], panes[lit]]), int((~lit).sum())


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    (ar, ag, ab), (br, bg, bb) = a, b
    return ar + (br - ar) * share, ag + (bg - ag) * share, ab + (bb - ab) * share


def _paint_roof(painter: Painter, view: Surroundings, building: Building, corners: list[Point], height: float) -> None:
    """A gable roof whose ridge runs along the road; painted before the walls."""
    a, b, c, d = corners
    ridge = height + building.roof_m * view.grown(building.s)
    ends = [((p[0] + q[0]) / 2, ridge, (p[1] + q[1]) / 2) for p, q in ((a, d), (b, c))]
    eaves = {corner: (corner[0], height, corner[1]) for corner in (a, b, c, d)}
    place = view.place((a[0] + c[0]) / 2, max((a[1] + c[1]) / 2, 1.0), building.s, building.d)
    tile = view.colour(_TILES[building.lit_seed % 3], place, sun=0.55 * max(view.sun[1], 0), facing=0.3)
    gable = view.colour([0.9 * c for c in building.wall], place, sun=0.25, facing=0.25)
    faces = [
        ((eaves[d], eaves[c], ends[1], ends[0]), tile),
        ((eaves[b], eaves[c], ends[1]), gable),
        ((eaves[a], eaves[d], ends[0]), gable),
        ((eaves[a], eaves[b], ends[1], ends[0]), tile),
    ]
    for face, colour in faces:
        pixels = view.camera.outline(face)
        if pixels:
            painter.stand(to_fixed(pixels), colour)
