"""Paint what stands beside the road: street lamps, signs, rails and barriers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from preprocessing.synthetic.camera import NEAR_M, Camera, Point
from preprocessing.synthetic.ground import headlight, street_light
from preprocessing.synthetic.light import HEADLIGHT_COLOUR, LAMP_COLOUR, Colour, Light, display_colour
from preprocessing.synthetic.painter import Painter, rectangle, strip, to_fixed
from preprocessing.synthetic.road import Road
from preprocessing.synthetic.scene import Scene
from preprocessing.synthetic.scenery import DRAW_M, GROW_M, Sign
from preprocessing.synthetic.vehicles import Lamp

_HEADLIGHT, _LAMP = HEADLIGHT_COLOUR.tolist(), LAMP_COLOUR.tolist()
LAMP_HEIGHT_M = 8.2
RAIL_STEP_M = 8.0


class Place(NamedTuple):
    """A spot in both coordinate systems and in its light.

    Attributes:
        right, forward: metres from the camera.
        s, d: metres along and across the road.
        clear: share of its light that reaches the camera.
        beam, street: light of the own headlights and of the street lamps.
    """

    right: float
    forward: float
    s: float
    d: float
    clear: float
    beam: float
    street: float


class Surroundings:
    """One frame's view of the roadside: camera, light and road bound together.

    Attributes:
        sun: direction to it, (right, up, forward).
        mirror: linear colour of an unlit window, which mirrors the sky.
    """

    def __init__(self, scene: Scene, road: Road, camera: Camera, light: Light) -> None:
        self.scene, self.road, self.camera, self.light = scene, road, camera, light
        cos, sin = math.cos(camera.yaw), math.sin(camera.yaw)
        east, up, north = light.sun_direction.tolist()
        self.sun = (east * cos - north * sin, up, east * sin + north * cos)
        self.mirror = (0.035 * light.ambient + 0.012 * light.sun + 0.16 * light.zenith + 0.08 * light.horizon).tolist()
        self._ambient, self._sun = light.ambient.tolist(), light.sun.tolist()
        self._haze = light.haze.tolist()

    def places(self, s: Sequence[float], d: Sequence[float]) -> list[Place]:
        """Many places at once."""
        s_array, d_array = np.asarray(s, float), np.asarray(d, float)
        right, forward = self.camera.to_camera(*self.road.locate(s_array, d_array))
        clear, beam, street = np.exp(-np.hypot(right, forward) / self.scene.sight_m), 0 * right, 0 * right
        if self.light.lamps > 0:
            beam = self.light.lamps * headlight(right, np.maximum(forward, 0.5))
            street = self.light.lamps * street_light(self.scene, s_array, d_array)
        columns = (right, forward, s_array, d_array, clear, beam, street)
        return list(map(Place, *(column.tolist() for column in columns)))

    def place(self, right: float, forward: float, s: float, d: float) -> Place:
        """One place that is known in both coordinate systems."""
        clear, beam, street = math.exp(-math.hypot(right, forward) / self.scene.sight_m), 0.0, 0.0
        if self.light.lamps > 0:
            beam = self.light.lamps * headlight(right, max(forward, 0.5), math)
            street = self.light.lamps * street_light(self.scene, s, d, math)
        return Place(right, forward, s, d, clear, beam, street)

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
        if self.light.lamps > 0:
            beam, street = 0.7 * facing * place.beam, 0.8 * place.street
            (h_r, h_g, h_b), (k_r, k_g, k_b) = _HEADLIGHT, _LAMP
            r, g, b = r + beam * h_r + street * k_r, g + beam * h_g + street * k_g, b + beam * h_b + street * k_b
        return self.hazed((albedo[0] * r, albedo[1] * g, albedo[2] * b), place)

    def hazed(self, linear: Sequence[float], place: Place) -> Colour:
        """Linear colour to display colour behind the air in between."""
        (r, g, b), (haze_r, haze_g, haze_b), clear, air = linear, self._haze, place.clear, 1 - place.clear
        return display_colour(r * clear + haze_r * air, g * clear + haze_g * air, b * clear + haze_b * air)


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
    painter.stand(pole, grey)
    painter.fill(strip(top, end, 0.6 * half, 0.6 * half), grey)
    wide, tall = max(0.42 * scale, 0.4), max(0.11 * scale, 0.25)
    box = rectangle(end[0] - wide, end[1] - tall, end[0] + wide, end[1] + tall)
    glow = view.light.lamps
    painter.stand(box, view.hazed([0.05 + 1.7 * glow * c for c in _LAMP], base) if glow > 0 else grey)
    if glow <= 0:
        return []
    power = 0.95 * glow * grown * math.exp(-0.6 * base.forward / view.scene.sight_m)
    place = {"column": end[0], "row": end[1], "distance_m": base.forward}
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

    def band(low: float, high: float) -> list[Point]:
        corners = ((start, low), (end, low), (end, high), (start, high))
        return view.camera.outline([(place.right, up, place.forward) for place, up in corners])

    pixels = band(0.0, 0.82) if concrete else band(0.48, 0.76)
    if not pixels or not painter.in_view(pixels):
        return
    albedo = (0.26, 0.25, 0.23) if concrete else (0.27, 0.28, 0.29)
    sun = max(0.25 - 0.5 * math.copysign(view.sun[0], (start.d - view.camera.d) * view.sun[0]), 0.0)
    middle = (start.forward + end.forward) / 2
    place = view.place((start.right + end.right) / 2, max(middle, 7.0), start.s, start.d)
    painter.begin_object()
    painter.stand(to_fixed(pixels), view.colour(albedo, place, sun=sun, facing=0.5))
    if concrete:
        painter.fill(to_fixed(band(0.72, 0.82)), view.colour((0.48, 0.47, 0.44), place, sun=0.8, facing=0.5))
    if not concrete and NEAR_M < start.forward < 60:
        half = max(0.06 * view.camera.focal / start.forward, 0.25)
        foot, top = (view.camera.pixel(start.right, up, start.forward) for up in (0.0, 0.7))
        painter.fill(strip(foot, top, half, half), view.colour((0.15, 0.155, 0.16), place, sun=0.3, facing=0.5))
