"""Paint vehicles: transform a shape, drop faces that look away, shade the rest, remember where its lamps are."""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import cv2
import numpy as np

from preprocessing.synthetic.camera import NEAR_M, Camera, clip_near
from preprocessing.synthetic.ground import headlight, street_light
from preprocessing.synthetic.light import HEADLIGHT_COLOUR, LAMP_COLOUR, Light, display
from preprocessing.synthetic.painter import Painter, to_fixed
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


@dataclass(frozen=True, kw_only=True)
class Baked:
    """A shape as arrays: polygons are slices of `points`; `everything` also has the parts' middles and the lamps."""

    points: np.ndarray
    width_m: float
    slices: tuple[tuple[int, int], ...]
    normals: np.ndarray
    detail: np.ndarray
    albedo: np.ndarray
    painted: np.ndarray
    glass: np.ndarray
    shine: np.ndarray
    brake: np.ndarray
    anchors: np.ndarray
    parts: tuple[tuple[int, int], ...]
    everything: np.ndarray
    splits: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Pose:
    """A vehicle before the camera: its middle on the ground, its direction against the camera's, its look."""

    right: float
    forward: float
    turn: float
    s: float
    d: float
    kind: str
    colour: np.ndarray
    braking: bool


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
def bake(kind: str) -> Baked:
    """Lay a kind's polygons out for one transform per vehicle."""
    shape = shape_of(kind)
    polygons = [polygon for part in shape.parts for polygon in part.polygons]
    roles = [polygon.role for polygon in polygons]
    ends = np.cumsum([len(polygon.points) for polygon in polygons])
    starts = [0, *ends[:-1]]
    counts = np.cumsum([0, *(len(part.polygons) for part in shape.parts)])
    points = np.concatenate([polygon.points for polygon in polygons])
    middles = np.array([part.middle for part in shape.parts])
    return Baked(
        points=points,
        width_m=float(np.ptp(points[:, 0])),
        slices=tuple((int(a), int(b)) for a, b in zip(starts, ends, strict=True)),
        normals=np.array([polygon.normal for polygon in polygons]),
        detail=np.array([polygon.detail for polygon in polygons]),
        albedo=np.array([_ROLES.get(role, (0.0, 0.0, 0.0)) for role in roles]),
        painted=np.isin(roles, ("paint", "cargo")),
        glass=np.array([role == "glass" for role in roles], float),
        shine=np.array([_SHINE.get(role, (0.0, 0.0, 0.0)) for role in roles]),
        brake=np.array([(0.9, 0.07, 0.05) if role == "rear_light" else (0.0, 0.0, 0.0) for role in roles]),
        anchors=np.array(starts),
        parts=tuple(pairwise(counts.tolist())),
        everything=np.concatenate([points, middles, shape.rear_lights, shape.front_lights]),
        splits=(len(points), len(points) + len(middles)),
    )


def footprint(pose: Pose, length_m: float, width_m: float) -> np.ndarray:
    """Corners of the vehicle on the ground, camera points (4, 3)."""
    half = np.array(((-1, -1), (1, -1), (1, 1), (-1, 1))) * (width_m / 2, length_m / 2)
    corners = np.stack([half[:, 0], np.zeros(4), half[:, 1]], axis=1)
    return _place(corners, pose)


def paint_vehicle(
    painter: Painter, camera: Camera, light: Light, scene: Scene, pose: Pose
) -> tuple[np.ndarray | None, list[Lamp]]:
    """Paint one vehicle as the painter's current object.

    Returns:
        Its silhouette's points in pixels, or None if it is out of sight, and its lamps that are on.
    """
    baked = bake(pose.kind)
    points, middles, places = np.split(_place(baked.everything, pose), baked.splits)
    if points[:, 2].max() < NEAR_M:
        return None, []
    normals = _turn(baked.normals, pose.turn)
    anchors = points[baked.anchors] - (0, camera.height_m, 0)
    size = camera.focal * baked.width_m / max(pose.forward, NEAR_M)
    visible = ((normals * anchors).sum(1) < 0) & (size >= baked.detail)
    colours = _shade(baked, normals, light, scene, pose, camera)
    whole = points[:, 2].min() >= NEAR_M
    pixels = camera.project(points) if whole else None
    if pixels is not None and not painter.in_view(pixels):
        return None, []
    fixed = None if pixels is None else to_fixed(pixels)
    silhouette: list[np.ndarray] = []
    for part in np.argsort(-(middles**2).sum(1), kind="stable"):
        first, last = baked.parts[part]
        before = len(silhouette)
        for i in range(first, last):
            if not visible[i]:
                continue
            a, b = baked.slices[i]
            if pixels is not None and fixed is not None:
                painter.fill_fixed(fixed[a:b], colours[i])
                silhouette.append(pixels[a:b])
            elif len(polygon := _project_clipped(camera, points[a:b])):
                painter.fill(polygon, colours[i])
                silhouette.append(polygon)
        _claim(painter, silhouette[before:])
    if not silhouette:
        return None, []
    return np.concatenate(silhouette), _lamps(places, camera, light, scene, pose, painter.objects)


def _claim(painter: Painter, polygons: list[np.ndarray]) -> None:
    if polygons:
        painter.claim(cv2.convexHull(np.concatenate(polygons).astype(np.float32))[:, 0])


def _project_clipped(camera: Camera, polygon: np.ndarray) -> np.ndarray:
    clipped = clip_near(polygon)
    return camera.project(clipped) if len(clipped) else clipped[:, :2]


def _turn(vectors: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    x, z = vectors[:, 0], vectors[:, 2]
    turned = vectors.copy()
    turned[:, 0] = x * cos + z * sin
    turned[:, 2] = z * cos - x * sin
    return turned


def _place(points: np.ndarray, pose: Pose) -> np.ndarray:
    return _turn(points, pose.turn) + np.array((pose.right, 0.0, pose.forward))


def _shade(
    baked: Baked, normals: np.ndarray, light: Light, scene: Scene, pose: Pose, camera: Camera
) -> list[list[float]]:
    """Display colours of all polygons."""
    base = np.where(baked.painted[:, None], pose.colour, baked.albedo)
    sun = _turn(light.sun_direction[None], -camera.yaw)[0]
    up = normals[:, 1:2]
    incoming = light.ambient * (0.72 + 0.28 * up) + light.sun * np.maximum(normals @ sun, 0)[:, None]
    # Panes mirror the sky: more of it the more they lean back.
    colour = baked.glass[:, None] * ((0.10 + 0.30 * np.maximum(up, 0)) * light.zenith + 0.06 * light.horizon)
    if light.lamps > 0:
        beam = 0.8 * headlight(pose.right, max(pose.forward - 2.5, 0.5)) * np.maximum(-normals[:, 2:3], 0)
        street = street_light(scene, pose.s, pose.d) * (0.55 + 0.45 * up)
        incoming = incoming + light.lamps * (beam * HEADLIGHT_COLOUR + street * LAMP_COLOUR)
        colour = colour + light.lamps * baked.shine
    if pose.braking:
        colour = colour + baked.brake
    colour = colour + base * incoming
    clear = np.exp(-np.hypot(pose.right, pose.forward) / scene.sight_m)
    return display(colour * clear + light.haze * (1 - clear)).tolist()


def _lamps(places: np.ndarray, camera: Camera, light: Light, scene: Scene, pose: Pose, owner: int) -> list[Lamp]:
    if light.lamps <= 0 and not pose.braking:
        return []
    lamps = []
    for i, place in enumerate(places.tolist()):
        right, up, forward = place
        front, distance = i >= 2, math.hypot(right, forward)
        # Cosine between the lamp's direction and the line to the camera.
        aim = (math.cos(pose.turn) * forward + math.sin(pose.turn) * right) / distance * (-1 if front else 1)
        if forward < NEAR_M or aim < 0.05:
            continue
        column, row = camera.pixel(right, up, forward)
        clear = math.exp(-0.6 * distance / scene.sight_m)
        power = light.lamps * aim * (2.1 if front else 0.42) + (
            0.0 if front else 0.6 * pose.braking * (0.25 + light.lamps)
        )
        colour = (1.0, 0.95, 0.84) if front else (1.0, 0.09, 0.05)
        lamps.append(
            Lamp(
                column=float(column),
                row=float(row),
                distance_m=distance,
                colour=colour,
                power=power * clear,
                owner=owner,
            )
        )
    return lamps
