"""Paint vehicles: place their shapes, drop faces that look away, shade the rest, remember where their lamps are.

All vehicles of a frame are placed, projected and shaded together: most are a few pixels wide, and their time would
otherwise go into calls.
"""

from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import cv2
import numpy as np

from preprocessing.synthetic.camera import NEAR_M, Camera
from preprocessing.synthetic.ground import headlight, street_light
from preprocessing.synthetic.light import HEADLIGHT_COLOUR, LAMP_COLOUR, Light, display
from preprocessing.synthetic.painter import FIXED, SUPERSAMPLING, Painter, to_fixed
from preprocessing.synthetic.scene import Scene
from preprocessing.synthetic.vehicle_models import shape_of

_ROLES = {
    "tyre": (0.012, 0.012, 0.013),
    "dark": (0.018, 0.018, 0.02),
    "hub": (0.20, 0.20, 0.21),
    "plate": (0.62, 0.60, 0.50),
    "rear_light": (0.26, 0.014, 0.012),
    "front_light": (0.55, 0.56, 0.58),
    "glass": (0.03, 0.035, 0.04),
}
_SHINE = {"rear_light": (0.62, 0.03, 0.02), "front_light": (1.3, 1.25, 1.1)}
# Vehicles narrower than this have no wheels and little else; faces smaller than that are not painted.
_NEAR_PX, _MIN_AREA_PX = 6.0, 0.04
_REAR_GLOW, _FRONT_GLOW = (1.0, 0.09, 0.05), (1.0, 0.95, 0.84)


@dataclass(frozen=True, kw_only=True)
class Baked:
    """A shape as arrays: a polygon is a run of `points`, a part a run of polygons.

    Attributes:
        points: (n, 3) corners of all polygons, then `middles` of the parts, then two rear and two front lamps.
        middles: where in `points` the parts' middles are.
        starts, ends: where in `points` each polygon begins and ends.
        parts: number of polygons of each part.
        normals, area_m2, detail, albedo, painted, glass, shine, brake: of each polygon.
    """

    points: np.ndarray
    middles: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    parts: tuple[int, ...]
    normals: np.ndarray
    area_m2: np.ndarray
    detail: np.ndarray
    albedo: np.ndarray
    painted: np.ndarray
    glass: np.ndarray
    shine: np.ndarray
    brake: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Poses:
    """Vehicles before the camera, one row each.

    Attributes:
        number: in the drive.
        kind, colour, length_m, width_m: what each is.
        right, forward: its middle on the ground, metres from the camera.
        turn: its direction against the camera's.
        s, d: its place on the road.
        braking: whether it brakes.
    """

    number: np.ndarray
    kind: list[str]
    colour: np.ndarray
    length_m: np.ndarray
    width_m: np.ndarray
    right: np.ndarray
    forward: np.ndarray
    turn: np.ndarray
    s: np.ndarray
    d: np.ndarray
    braking: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Lamp:
    """A lamp that glows: where it is in the picture, how far away, how bright, whose it is."""

    column: float
    row: float
    distance_m: float
    colour: tuple[float, float, float]
    power: float
    owner: int


@cache
def bake(kind: str, near: bool) -> Baked:
    """Lay a kind's polygons out for one transform of all vehicles; without what only near ones show."""
    shape = shape_of(kind)
    parts = [[polygon for polygon in part.polygons if near or polygon.detail < _NEAR_PX] for part in shape.parts]
    polygons = [polygon for part in parts for polygon in part]
    roles = [polygon.role for polygon in polygons]
    ends = np.cumsum([len(polygon.points) for polygon in polygons])
    points = np.concatenate([polygon.points for polygon in polygons])
    middles = np.array([part.middle for part in shape.parts])
    return Baked(
        points=np.concatenate([points, middles, shape.rear_lights, shape.front_lights]),
        middles=np.arange(len(points), len(points) + len(middles)),
        starts=np.concatenate([[0], ends[:-1]]),
        ends=ends,
        parts=tuple(len(part) for part in parts),
        area_m2=np.array([_area(polygon.points) for polygon in polygons]),
        normals=np.array([polygon.normal for polygon in polygons]),
        detail=np.array([polygon.detail for polygon in polygons]),
        albedo=np.array([_ROLES.get(role, (0.0, 0.0, 0.0)) for role in roles]),
        painted=np.isin(roles, ("paint", "cargo")),
        glass=np.array([role == "glass" for role in roles], float),
        shine=np.array([_SHINE.get(role, (0.0, 0.0, 0.0)) for role in roles]),
        brake=np.array([(0.9, 0.07, 0.05) if role == "rear_light" else (0.0, 0.0, 0.0) for role in roles]),
    )


class Fleet:
    """All vehicles of one frame, ready to be painted one by one.

    Attributes:
        windows: canvas pixels (x1, y1, x2, y2) outside of which nothing of a vehicle shows.
    """

    def __init__(self, camera: Camera, light: Light, scene: Scene, poses: Poses) -> None:
        self.camera, self.light, self.scene, self.poses = camera, light, scene, poses
        self._size_px = camera.focal * poses.width_m / np.maximum(poses.forward, NEAR_M)
        near = (self._size_px >= _NEAR_PX).tolist()
        self._baked = [bake(*row) for row in zip(poses.kind, near, strict=True)]
        self.windows: list[list[int]] = []
        if self._baked:
            self._place()
            self._look()
            self._select()

    def paint(self, painter: Painter, row: int) -> list[Lamp]:
        """Paint the vehicle of a row of the poses as the painter's current object; returns its lamps that are on."""
        if not self._seen[row]:
            return []
        whole = self._whole[row]
        parts = range(self._part[row], self._part[row + 1])
        for part in sorted(parts, key=self._near.__getitem__):
            own = range(self._cuts[part], self._cuts[part + 1])
            polygons = [(self._polygon(i, whole), self._colours[i]) for i in own]
            polygons = [(polygon, colour) for polygon, colour in polygons if len(polygon)]
            for polygon, colour in polygons:
                painter.fill(polygon, colour)
            if polygons:
                painter.claim(cv2.convexHull(np.concatenate([polygon for polygon, _ in polygons])))
        return [
            Lamp(
                column=float(self._lamp_pixels[row, i, 0]),
                row=float(self._lamp_pixels[row, i, 1]),
                distance_m=float(self._lamp_distance[row, i]),
                colour=_REAR_GLOW if i < 2 else _FRONT_GLOW,
                power=float(self._lamp_power[row, i]),
                owner=painter.objects,
            )
            for i in np.flatnonzero(self._lamp_power[row] > 0).tolist()
        ]

    def _gather(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One array of every vehicle's shape end to end, and the row each element belongs to."""
        arrays = [getattr(baked, name) for baked in self._baked]
        return np.concatenate(arrays), np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])

    def _place(self) -> None:
        """Put all corners before the camera and into the picture."""
        self._first = list(accumulate((len(baked.points) for baked in self._baked), initial=0))
        self._part = list(accumulate((len(baked.parts) for baked in self._baked), initial=0))
        points, vehicle = self._gather("points")
        self._points = _turned(points, self.poses.turn[vehicle])
        self._points[:, 0] += self.poses.right[vehicle]
        self._points[:, 2] += self.poses.forward[vehicle]
        middles = [first + baked.middles for first, baked in zip(self._first, self._baked, strict=False)]
        self._near = (-(self._points[np.concatenate(middles)] ** 2).sum(1)).tolist()
        self._fixed = to_fixed(self.camera.project(np.maximum(self._points, (-np.inf, -np.inf, NEAR_M))))

    def _look(self) -> None:
        """Find which vehicles are in sight, and in which window; those cut by the near plane may be anywhere."""
        first, right, bottom = self._first[:-1], SUPERSAMPLING * self.camera.width, SUPERSAMPLING * self.camera.height
        low = np.minimum.reduceat(self._fixed, first) // FIXED - 2
        high = np.maximum.reduceat(self._fixed, first) // FIXED + 3
        forward = self._points[:, 2]
        self._whole = np.minimum.reduceat(forward, first) >= NEAR_M
        inside = (high >= 0).all(1) & (low < (right, bottom)).all(1)
        self._seen = np.where(self._whole, inside, np.maximum.reduceat(forward, first) >= NEAR_M)
        windows = np.concatenate([np.maximum(low, 0), np.minimum(high, (right, bottom))], axis=1)
        self.windows = np.where(self._whole[:, None], windows, (0, 0, right, bottom)).tolist()

    def _select(self) -> None:
        """Choose the polygons that show, and light them and the lamps."""
        normals, vehicle = self._gather("normals")
        offset = np.array(self._first)[vehicle]
        starts, ends = self._gather("starts")[0] + offset, self._gather("ends")[0] + offset
        normals = _turned(normals, self.poses.turn[vehicle])
        first = self._points[starts]
        towards = -(normals * (first - (0, self.camera.height_m, 0))).sum(1)
        area_px = self.camera.focal**2 * self._gather("area_m2")[0] * towards / np.maximum(first[:, 2], NEAR_M) ** 3
        detailed = self._size_px[vehicle] >= self._gather("detail")[0]
        shown = np.flatnonzero((area_px > _MIN_AREA_PX) & detailed & self._seen[vehicle])
        self._runs = list(zip(starts[shown].tolist(), ends[shown].tolist(), strict=True))
        self._colours = self._shade(shown, normals[shown], vehicle[shown])
        polygons = [0, *accumulate(count for baked in self._baked for count in baked.parts)]
        self._cuts = np.searchsorted(shown, polygons).tolist()
        self._light_lamps()

    def _polygon(self, i: int, whole: bool) -> np.ndarray:
        """Canvas corners of a polygon that shows; may be none for a vehicle that the near plane cuts."""
        start, end = self._runs[i]
        if whole:
            return self._fixed[start:end]
        return to_fixed(self.camera.outline(self._points[start:end].tolist()))

    def _shade(self, shown: np.ndarray, normals: np.ndarray, vehicle: np.ndarray) -> list[list[float]]:
        """Display colours of the polygons that show."""
        poses, light, camera = self.poses, self.light, self.camera
        painted, albedo, glass, shine, brake = (
            self._gather(name)[0][shown] for name in ("painted", "albedo", "glass", "shine", "brake")
        )
        base = np.where(painted[:, None], poses.colour[vehicle], albedo)
        sun = _turned(light.sun_direction[None], np.array(-camera.yaw))[0]
        up = normals[:, 1:2]
        incoming = light.ambient * (0.72 + 0.28 * up) + light.sun * np.maximum(normals @ sun, 0)[:, None]
        # Panes mirror the sky: more of it the more they lean back.
        colour = glass[:, None] * ((0.10 + 0.30 * np.maximum(up, 0)) * light.zenith + 0.06 * light.horizon)
        if light.lamps > 0:
            beam = 0.8 * headlight(poses.right, np.maximum(poses.forward - 2.5, 0.5))
            beam = beam[vehicle, None] * np.maximum(-normals[:, 2:3], 0)
            street = street_light(self.scene, poses.s, poses.d)[vehicle, None] * (0.55 + 0.45 * up)
            incoming = incoming + light.lamps * (beam * HEADLIGHT_COLOUR + street * LAMP_COLOUR)
            colour = colour + light.lamps * shine
        colour = colour + poses.braking[vehicle, None] * brake + base * incoming
        clear = np.exp(-np.hypot(poses.right, poses.forward) / self.scene.sight_m)[vehicle, None]
        return display(colour * clear + light.haze * (1 - clear)).tolist()

    def _light_lamps(self) -> None:
        """Place and power of every vehicle's two rear and two front lamps; no power is off or out of sight."""
        poses, lamps = self.poses, self.light.lamps
        places = self._points[np.array(self._first[1:])[:, None] + (-4, -3, -2, -1)]
        right, forward, turn = places[..., 0], places[..., 2], poses.turn[:, None]
        distance = np.hypot(right, forward)
        # Cosine between the lamp's direction and the line to the camera.
        aim = (np.cos(turn) * forward + np.sin(turn) * right) / distance * (1, 1, -1, -1)
        braking = poses.braking[:, None] * (0.6, 0.6, 0, 0) * (0.25 + lamps)
        power = lamps * aim * (0.42, 0.42, 2.1, 2.1) + braking
        clear = np.exp(-0.6 * distance / self.scene.sight_m)
        self._lamp_power = np.where((forward >= NEAR_M) & (aim >= 0.05), power * clear, 0.0)
        self._lamp_pixels = self.camera.project(np.maximum(places, (-np.inf, -np.inf, NEAR_M)))
        self._lamp_distance = distance


def _area(points: np.ndarray) -> float:
    """Area of a flat convex polygon (n, 3)."""
    edges = points[1:] - points[0]
    return float(np.linalg.norm(np.cross(edges[:-1], edges[1:]).sum(0)) / 2)


def _turned(vectors: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Turn vectors (n, 3) about the vertical."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, z = vectors[:, 0], vectors[:, 2]
    turned = vectors.copy()
    turned[:, 0] = x * cos + z * sin
    turned[:, 2] = z * cos - x * sin
    return turned
