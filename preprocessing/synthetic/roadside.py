"""Paint what stands beside the road: trees, street lamps, signs, rails and barriers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preprocessing.synthetic.camera import NEAR_M, Camera, clip_near
from preprocessing.synthetic.ground import headlight, street_light
from preprocessing.synthetic.light import HEADLIGHT_COLOUR, LAMP_COLOUR, Colour, Light, display_colour
from preprocessing.synthetic.painter import Painter, rectangle, strip
from preprocessing.synthetic.road import Road
from preprocessing.synthetic.scene import Scene
from preprocessing.synthetic.scenery import DRAW_M, GROW_M, Sign, Tree
from preprocessing.synthetic.vehicles import Lamp

_HEADLIGHT, _LAMP = HEADLIGHT_COLOUR.tolist(), LAMP_COLOUR.tolist()
LAMP_HEIGHT_M = 8.2
RAIL_STEP_M = 8.0


@dataclass(frozen=True)
class Place:
    """A spot in both coordinate systems: metres right of and before the camera, metres along and across the road."""

    right: float
    forward: float
    s: float
    d: float


class Surroundings:
    """One frame's view of the roadside: camera, light and road bound together."""

    def __init__(self, scene: Scene, road: Road, camera: Camera, light: Light) -> None:
        self.scene, self.road, self.camera, self.light = scene, road, camera, light
        cos, sin = math.cos(camera.yaw), math.sin(camera.yaw)
        east, up, north = light.sun_direction.tolist()
        self.sun = (east * cos - north * sin, up, east * sin + north * cos)
        self._ambient, self._sun = light.ambient.tolist(), light.sun.tolist()
        self._haze = light.haze.tolist()

    def places(self, s: Sequence[float], d: Sequence[float]) -> list[Place]:
        """Many places at once."""
        s_array, d_array = np.asarray(s, float), np.asarray(d, float)
        right, forward = self.camera.to_camera(*self.road.locate(s_array, d_array))
        return [Place(*values) for values in zip(right.tolist(), forward.tolist(), s, d, strict=True)]

    def grown(self, s: float) -> float:
        """1 for near things, falling to 0 at the edge of sight."""
        return min(max((self.camera.s + DRAW_M - s) / GROW_M, 0.0), 1.0)

    def colour(self, albedo: Sequence[float], place: Place, sun: float = 0.5, facing: float = 0.7) -> Colour:
        """Display colour of a surface.

        Args:
            albedo: linear RGB.
            place: where it is.
            sun: cosine to the sun, at least 0.
            facing: share of the own headlights it takes.
        """
        (r, g, b), (sun_r, sun_g, sun_b) = self._ambient, self._sun
        r, g, b = 0.92 * r + sun * sun_r, 0.92 * g + sun * sun_g, 0.92 * b + sun * sun_b
        lamps = self.light.lamps
        if lamps > 0:
            beam = 0.7 * lamps * facing * float(headlight(place.right, max(place.forward, 0.5)))
            street = 0.8 * lamps * float(street_light(self.scene, place.s, place.d))
            (h_r, h_g, h_b), (k_r, k_g, k_b) = _HEADLIGHT, _LAMP
            r, g, b = r + beam * h_r + street * k_r, g + beam * h_g + street * k_g, b + beam * h_b + street * k_b
        return self.hazed((albedo[0] * r, albedo[1] * g, albedo[2] * b), place)

    def hazed(self, linear: Sequence[float], place: Place) -> Colour:
        """Linear colour to display colour behind the air in between."""
        clear = math.exp(-math.hypot(place.right, place.forward) / self.scene.sight_m)
        (r, g, b), (haze_r, haze_g, haze_b), air = linear, self._haze, 1 - clear
        return display_colour(r * clear + haze_r * air, g * clear + haze_g * air, b * clear + haze_b * air)


def _outlines() -> np.ndarray:
    """Eight crowns of 14 points around (0, 0), about unit radius."""
    rng = np.random.default_rng(7)
    angle = np.arange(14) * (2 * np.pi / 14)
    outlines = []
    for _ in range(8):
        radius = 1 + 0.10 * np.sin(2 * angle + rng.uniform(0, 6.3)) + 0.07 * np.sin(3 * angle + rng.uniform(0, 6.3))
        outlines.append(np.stack([radius * np.cos(angle), -radius * np.sin(angle)], axis=1))
    return np.array(outlines)


_CROWNS = _outlines()
_CONIFER = tuple(
    (wide, low, np.array(((-wide, -low), (wide, -low), (0, -high))))
    for low, high, wide in ((0.10, 0.62, 0.24), (0.34, 0.82, 0.19), (0.58, 1.0, 0.13))
)


def paint_tree(painter: Painter, view: Surroundings, tree: Tree, place: Place) -> None:
    """Paint a tree as a new object: trunk, crown, and lighter blobs towards the sun."""
    height = tree.height_m * view.grown(tree.s) * view.camera.focal / place.forward
    if height < 0.8:
        return
    foot = view.camera.pixel(place.right, 0.0, place.forward)
    dark = view.colour(tree.shade, place, sun=0.16, facing=0.8)
    painter.begin_object()
    top = foot - (0, 0.45 * height)
    half = max(0.022 * height, 0.3)
    stem = strip(foot, top, half, 0.7 * half)
    painter.stand(stem, view.colour((0.06, 0.045, 0.03), place, sun=0.3, facing=0.8))
    if tree.conifer:
        _paint_conifer(painter, view, tree, place, foot, height)
        return
    crown = _CROWNS[tree.shape] * ((0.30 + 0.02 * (tree.shape % 3)) * height, 0.33 * height)
    centre = foot - (0, 0.66 * height)
    painter.stand(centre + crown, dark)
    lean = view.sun[0]
    if height > 5:
        mid = view.colour(tree.shade, place, sun=0.55, facing=0.9)
        painter.fill(centre + crown * 0.76 + (0.055 * lean * height, -0.05 * height), mid)
    if height > 16:
        bright = view.colour([1.15 * c for c in tree.shade], place, sun=0.95, facing=1.0)
        other = _CROWNS[(tree.shape + 3) % 8] * (0.13 * height, 0.12 * height)
        painter.fill(centre + other + ((-0.08 + 0.10 * lean) * height, -0.12 * height), bright)
        painter.fill(centre + other * 0.8 + ((0.10 + 0.06 * lean) * height, -0.03 * height), bright)


def _paint_conifer(
    painter: Painter, view: Surroundings, tree: Tree, place: Place, foot: np.ndarray, height: float
) -> None:
    dark = view.colour(tree.shade, place, sun=0.16, facing=0.8)
    lit = view.colour(tree.shade, place, sun=0.6, facing=0.9)
    lean = view.sun[0]
    for wide, low, tier in _CONIFER:
        painter.stand(foot + tier * height, dark)
        if height > 7:
            left, right = wide * (0.25 + 0.6 * max(-lean, 0)), wide * (0.25 + 0.6 * max(lean, 0))
            painter.fill(foot + np.array(((-left, -low - 0.02), (right, -low - 0.02), tier[2])) * height, lit)


def paint_lamp_post(painter: Painter, view: Surroundings, base: Place, head: Place) -> list[Lamp]:
    """Paint a street lamp with its arm over the road; returns its light if it is on."""
    if min(base.forward, head.forward) < NEAR_M + 0.4:
        return []
    grown = view.grown(base.s)
    scale = view.camera.focal / base.forward
    half = max(0.07 * scale, 0.22)
    foot, top = (view.camera.pixel(base.right, up, base.forward) for up in (0.0, LAMP_HEIGHT_M * grown - 0.3))
    end = view.camera.pixel(head.right, LAMP_HEIGHT_M * grown, head.forward)
    grey = view.colour((0.16, 0.165, 0.17), base, sun=0.4)
    number = painter.begin_object()
    pole = strip(foot, top, half, 0.7 * half)
    painter.fill(pole, grey)
    painter.fill(strip(top, end, 0.6 * half, 0.6 * half), grey)
    painter.claim(pole)
    wide, tall = max(0.42 * scale, 0.4), max(0.11 * scale, 0.25)
    box = rectangle(end[0] - wide, end[1] - tall, end[0] + wide, end[1] + tall)
    glow = view.light.lamps
    painter.stand(box, view.hazed([0.05 + 1.7 * glow * c for c in LAMP_COLOUR], base) if glow > 0 else grey)
    if glow <= 0:
        return []
    power = 0.95 * glow * grown * math.exp(-0.6 * base.forward / view.scene.sight_m)
    place = {"column": float(end[0]), "row": float(end[1]), "distance_m": base.forward}
    return [Lamp(**place, colour=(1.0, 0.74, 0.42), power=power, owner=number)]


def paint_sign(painter: Painter, view: Surroundings, sign: Sign, place: Place) -> None:
    """Paint a traffic sign that faces the traffic."""
    grown = view.grown(sign.s)
    white = view.colour((0.6, 0.6, 0.58), place, facing=1.6)
    half, base, top = sign.width_m / 2, sign.base_m * grown, (sign.base_m + sign.height_m) * grown

    def board(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
        low = view.camera.pixel(place.right + x1, y1, place.forward)
        high = view.camera.pixel(place.right + x2, y2, place.forward)
        return rectangle(low[0], high[1], high[0], low[1])

    painter.begin_object()
    for post in (-0.6 * half, 0.6 * half) if half > 0.6 else (0.0,):
        painter.fill(board(post - 0.05, 0, post + 0.05, top), view.colour((0.2, 0.2, 0.2), place))
    painter.stand(board(-half, base, half, top), white)
    painter.fill(board(-half + 0.08, base + 0.08, half - 0.08, top - 0.08), view.colour(sign.colour, place, facing=1.6))
    if half > 0.6 and place.forward < 90:
        for share in (0.3, 0.62):
            y = base + (top - base) * share
            painter.fill(board(-0.7 * half, y, 0.35 * half, y + 0.12 * (top - base)), white)


def paint_rail(painter: Painter, view: Surroundings, start: Place, end: Place, concrete: bool) -> None:
    """Paint RAIL_STEP_M of guard rail or of a concrete barrier."""

    def band(low: float, high: float) -> np.ndarray:
        corners = ((start, low), (end, low), (end, high), (start, high))
        clipped = clip_near(np.array([(p.right, up, p.forward) for p, up in corners]))
        return view.camera.project(clipped) if len(clipped) else clipped[:, :2]

    pixels = band(0.0, 0.82) if concrete else band(0.48, 0.76)
    if not len(pixels) or not painter.in_view(pixels):
        return
    albedo = (0.26, 0.25, 0.23) if concrete else (0.27, 0.28, 0.29)
    sun = max(0.25 - 0.5 * math.copysign(view.sun[0], (start.d - view.camera.d) * view.sun[0]), 0.0)
    middle = (start.forward + end.forward) / 2
    place = Place((start.right + end.right) / 2, max(middle, 7.0), start.s, start.d)
    painter.begin_object()
    painter.stand(pixels, view.colour(albedo, place, sun=sun, facing=0.5))
    if concrete:
        painter.fill(band(0.72, 0.82), view.colour((0.48, 0.47, 0.44), place, sun=0.8, facing=0.5))
    if not concrete and NEAR_M < start.forward < 60:
        half = max(0.06 * view.camera.focal / start.forward, 0.25)
        foot, top = (view.camera.pixel(start.right, up, start.forward) for up in (0.0, 0.7))
        painter.fill(strip(foot, top, half, half), view.colour((0.15, 0.155, 0.16), place, sun=0.3, facing=0.5))
