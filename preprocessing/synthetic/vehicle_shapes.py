"""Vehicles as convex parts: polygons in metres, (right, up, forward) from the middle of the footprint."""

from dataclasses import dataclass

import numpy as np

# Linear RGB; paint is drawn by weight, mostly the greys one meets on a road.
_PAINTS = np.array(
    (
        (0.62, 0.62, 0.61), (0.36, 0.37, 0.39), (0.13, 0.135, 0.145), (0.022, 0.022, 0.026), (0.05, 0.10, 0.27),
        (0.36, 0.035, 0.03), (0.10, 0.20, 0.13), (0.45, 0.30, 0.08), (0.12, 0.26, 0.36), (0.30, 0.27, 0.22),
    )
)  # fmt: skip
_PAINT_WEIGHTS = (0.2, 0.17, 0.14, 0.12, 0.11, 0.11, 0.04, 0.03, 0.05, 0.03)
_CARGO = np.array(((0.60, 0.60, 0.58), (0.55, 0.16, 0.05), (0.07, 0.15, 0.33), (0.32, 0.34, 0.36), (0.09, 0.26, 0.15)))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Size of a kind of vehicle and how often it is met."""

    length_m: float
    width_m: float
    height_m: float
    share: float
    heavy: bool = False

    def draw_colour(self, rng: np.random.Generator) -> np.ndarray:
        """Draw paint, linear RGB."""
        if self.heavy:
            return _CARGO[rng.integers(len(_CARGO))] * rng.uniform(0.85, 1.1)
        return _PAINTS[rng.choice(len(_PAINTS), p=_PAINT_WEIGHTS)] * rng.uniform(0.8, 1.2)


KINDS = {
    "hatchback": Kind(length_m=4.0, width_m=1.76, height_m=1.50, share=0.24),
    "sedan": Kind(length_m=4.7, width_m=1.82, height_m=1.45, share=0.3),
    "suv": Kind(length_m=4.7, width_m=1.92, height_m=1.74, share=0.22),
    "van": Kind(length_m=5.4, width_m=2.02, height_m=2.2, share=0.09),
    "truck": Kind(length_m=8.6, width_m=2.5, height_m=3.5, share=0.09, heavy=True),
    "bus": Kind(length_m=11.5, width_m=2.55, height_m=3.15, share=0.06, heavy=True),
}


@dataclass(frozen=True, kw_only=True)
class Polygon:
    """A flat convex piece of a vehicle.

    Attributes:
        points: (n, 3) metres.
        normal: outward.
        role: what it is made of: paint, glass, tyre, dark, rear_light, front_light, plate, cargo, hub.
        detail: pixels the vehicle must be wide for this to be drawn.
    """

    points: np.ndarray
    normal: np.ndarray
    role: str
    detail: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A convex body and what is painted on it; drawn in order."""

    polygons: tuple[Polygon, ...]
    middle: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A whole vehicle."""

    parts: tuple[Part, ...]
    rear_lights: np.ndarray
    front_lights: np.ndarray


def draw_kind(rng: np.random.Generator) -> str:
    """Draw a kind by its share."""
    return str(rng.choice(list(KINDS), p=[kind.share for kind in KINDS.values()]))


def quad_polygon(points: list[tuple[float, float, float]], role: str, detail: float = 0.0) -> Polygon:
    """Make a polygon; its normal follows the order of the corners."""
    array = np.array(points, dtype=float)
    normal = np.cross(array[1] - array[0], array[2] - array[1])
    return Polygon(points=array, normal=normal / np.linalg.norm(normal), role=role, detail=detail)


def outward(polygon: Polygon, middle: np.ndarray) -> Polygon:
    """Turn a polygon so that it looks away from `middle`."""
    if polygon.normal @ (polygon.points.mean(0) - middle) >= 0:
        return polygon
    return Polygon(points=polygon.points[::-1], normal=-polygon.normal, role=polygon.role, detail=polygon.detail)


def extrude(profile: list[tuple[float, float]], half_low: float, half_high: float, role: str) -> tuple[Polygon, ...]:
    """Sweep a side profile of (forward, up) across the width; the width goes from low to high with height."""
    ups = np.array([up for _, up in profile])
    half = np.interp(ups, (ups.min(), ups.max()), (half_low, half_high))
    left = [(-h, up, fwd) for (fwd, up), h in zip(profile, half, strict=True)]
    right = [(h, up, fwd) for (fwd, up), h in zip(profile, half, strict=True)]
    faces = [quad_polygon(left, role), quad_polygon(right, role)]
    for i in range(len(profile)):
        j = (i + 1) % len(profile)
        faces.append(quad_polygon([left[i], left[j], right[j], right[i]], role))
    middle = np.array(left + right).mean(0)
    return tuple(outward(face, middle) for face in faces)


def part_of(polygons: tuple[Polygon, ...] | list[Polygon]) -> Part:
    """Make a part of polygons."""
    points = np.concatenate([p.points for p in polygons])
    return Part(polygons=tuple(polygons), middle=(points.min(0) + points.max(0)) / 2)


def end_panel(
    up: tuple[float, float], across: tuple[float, float], fwd: float, role: str, detail: float = 0.0
) -> Polygon:
    """A rectangle on the front (fwd > 0) or rear end."""
    (y0, y1), (x0, x1) = up, across
    quad = quad_polygon([(x0, y0, fwd), (x1, y0, fwd), (x1, y1, fwd), (x0, y1, fwd)], role, detail)
    return outward(quad, np.array((0, 0, 0.0)) + np.array(((x0 + x1) / 2, (y0 + y1) / 2, 0.0)))


def inset_pane(face: Polygon, low: float, high: float, side: float, role: str, detail: float) -> Polygon:
    """A pane within a four-cornered face, in shares of its height and width."""
    points = face.points[np.argsort(-face.points[:, 1], kind="stable")]
    top, bottom = points[:2], points[2:]
    axis = 0 if np.ptp(top[:, 0]) > 0.2 else 2
    top, bottom = top[np.argsort(top[:, axis])], bottom[np.argsort(bottom[:, axis])]

    def at(x: float, y: float) -> tuple[float, ...]:
        upper = top[0] * (1 - x) + top[1] * x
        lower = bottom[0] * (1 - x) + bottom[1] * x
        return tuple(lower * (1 - y) + upper * y + 0.005 * face.normal)

    glass = quad_polygon([at(side, low), at(1 - side, low), at(1 - side, high), at(side, high)], role, detail)  # type: ignore[list-item]
    return outward(glass, glass.points.mean(0) - face.normal)


def wheels_of(kind: Kind, axles: tuple[float, ...], radius: float) -> list[Polygon]:
    """Make the wheels of all axles, as seen from the sides."""
    angle = np.arange(12) * (2 * np.pi / 12)
    wheels = []
    for axle in axles:
        for side in (-1.0, 1.0):
            x = side * (kind.width_m / 2 + 0.01)
            for r, role, detail in ((radius, "tyre", 6.0), (0.58 * radius, "hub", 22.0)):
                rim = [(x + side * 0.005, radius + r * np.sin(a), axle + r * np.cos(a)) for a in angle]
                wheels.append(outward(quad_polygon(rim, role, detail), np.array((0.0, radius, axle))))
    return wheels


def tyre_ends(kind: Kind, fwd: float, radius: float) -> list[Polygon]:
    """What shows of the tyres below the bumpers from behind and from the front."""
    outer, inner = kind.width_m / 2 - 0.02, kind.width_m / 2 - (0.24 if not kind.heavy else 0.5)
    tyres = []
    for end in (-fwd, fwd):
        for side in (-1, 1):
            tyres.append(end_panel((0.0, radius * 1.2), (side * inner, side * outer), end, "tyre", 5.0))
    return tyres


def lights_of(kind: Kind, up: tuple[float, float], width: float) -> tuple[list[Polygon], np.ndarray, np.ndarray]:
    """Make rear and front lights at a height; also returns where the rear and the front ones are."""
    outer = kind.width_m / 2 - 0.06
    end = kind.length_m / 2 + 0.012
    lights = []
    for fwd, role in ((-end, "rear_light"), (end, "front_light")):
        for side in (-1, 1):
            lights.append(end_panel(up, (side * (outer - width), side * outer), fwd, role, 3.0))
    middle = (sum(up) / 2, outer - width / 2)
    places = np.array([(side * middle[1], middle[0], 1.0) for side in (-1, 1)])
    return lights, places * (1, 1, -end), places * (1, 1, end)
