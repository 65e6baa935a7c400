"""Render a drive: `Drive(scene, ...).frame(time_s)` gives the picture and the exact boxes of the vehicles in it."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from preprocessing.synthetic.buildings import paint_building
from preprocessing.synthetic.camera import NEAR_M, Camera
from preprocessing.synthetic.ground import Ground
from preprocessing.synthetic.light import Light, light_at
from preprocessing.synthetic.painter import Painter, to_bytes
from preprocessing.synthetic.road import Road
from preprocessing.synthetic.roadside import (
    RAIL_STEP_M,
    Surroundings,
    paint_lamp_post,
    paint_rail,
    paint_sign,
)
from preprocessing.synthetic.scene import Scene, random
from preprocessing.synthetic.scenery import DRAW_M, Scenery
from preprocessing.synthetic.shadows import shadow_and_beams
from preprocessing.synthetic.sky import Sky
from preprocessing.synthetic.traffic import Traffic
from preprocessing.synthetic.trees import paint_tree, trees_in_sight
from preprocessing.synthetic.vehicles import Fleet, Lamp, Poses

_PAINTERS: dict[str, Any] = {
    "tree": paint_tree,
    "building": paint_building,
    "lamp": paint_lamp_post,
    "sign": paint_sign,
    "rail": paint_rail,
}
VIEW_M = 380.0
MIN_VISIBLE_PX = 6.0
_GRAIN_SHIFTS = 64
# A vehicle of which fog leaves less contrast than this has no box.
MIN_CONTRAST = 0.06


@dataclass(frozen=True, kw_only=True)
class VehicleBox:
    """What is visible of one vehicle in one frame.

    Attributes:
        vehicle: its number in the drive.
        kind: see vehicle_shapes.KINDS.
        box: (x1, y1, x2, y2) around its visible pixels, in [0, 1] of width and height.
        visible_px: its visible pixels.
        distance_m: from the camera to its middle.
        speed_mps: its speed.
        oncoming: whether it drives towards the camera.
    """

    vehicle: int
    kind: str
    box: tuple[float, float, float, float]
    visible_px: float
    distance_m: float
    speed_mps: float
    oncoming: bool


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A picture (H, W, 3) uint8 RGB, its vehicles, and the camera car's state."""

    image: np.ndarray
    boxes: tuple[VehicleBox, ...]
    speed_mps: float
    curvature: float


class Drive:
    """One drive, ready to be seen at any moment from 0 to `seconds`."""

    def __init__(self, scene: Scene, seconds: float, height: int, width: int, noise: float = 0.0) -> None:
        self.scene, self.size, self.noise = scene, (height, width), noise
        if noise > 0:
            # Drawing noise for each frame would take a twentieth of its time; a frame shows some window of this.
            grain = random(scene.seed, scene.clip, "grain")
            shape = (height + _GRAIN_SHIFTS, width + _GRAIN_SHIFTS, 3)
            self.grain = grain.standard_normal(shape, np.float32) * np.float32(255 * noise)
        self.traffic = Traffic(scene, seconds)
        end = float(self.traffic.s[-1, 0])
        self.road = Road(scene, -700.0, end + 1500.0)
        self.ground = Ground(scene, self.road)
        self.scenery = Scenery(scene)
        passed = self.road.heading[(self.road.s > -20) & (self.road.s < end + 20)]
        margin = 0.2
        self.sky = Sky(
            scene, light_at(scene, seconds / 2), self.camera_at(0.0), (passed.min() - margin, passed.max() + margin)
        )

    def camera_at(self, time_s: float) -> Camera:
        """Camera at a moment: on its car, following the road, rocking a little."""
        setup, (height, width) = self.scene.camera, self.size
        s, d, speed, yaw, _ = (column[0] for column in self.traffic.at(time_s))
        east, north = self.road.locate(s, d)
        rock = np.sin(7.1 * time_s + setup.bob_phase) + 0.6 * np.sin(11.3 * time_s + 2 * setup.bob_phase)
        return Camera(
            height=height,
            width=width,
            focal=width / 2 / np.tan(np.radians(setup.fov_deg) / 2),
            horizon=height * (setup.horizon + 0.0016 * rock * min(speed / 15, 1.0)),
            height_m=setup.height_m,
            east=float(east),
            north=float(north),
            yaw=float(self.road.heading_at(s) + 0.8 * yaw),
            s=float(s),
            d=float(d),
        )

    def frame(self, time_s: float) -> Frame:
        """Render one moment."""
        camera, light = self.camera_at(time_s), light_at(self.scene, time_s)
        view = Surroundings(self.scene, self.road, camera, light)
        poses = self._poses(camera, time_s)
        painter = Painter(self._background(camera, light, view, poses))
        fleet = Fleet(camera, light, self.scene, poses)
        lamps, painted = self._paint(painter, view, fleet)
        picture = _glow(painter, lamps, self.size)
        if self.noise > 0:
            rng = random(self.scene.seed, self.scene.clip, f"noise {round(time_s * 1000)}")
            row, column = rng.integers(_GRAIN_SHIFTS, size=2)
            picture += self.grain[row : row + self.size[0], column : column + self.size[1]]
        speed = self.traffic.at(time_s)[2]
        return Frame(
            image=to_bytes(picture),
            boxes=self._boxes(painter, painted, fleet, speed),
            speed_mps=float(speed[0]),
            curvature=float(np.interp(camera.s, self.road.s, self.road.curvature)),
        )

    def _poses(self, camera: Camera, time_s: float) -> Poses:
        """All other vehicles within sight."""
        s, d, _, yaw, braking = self.traffic.at(time_s)
        vehicles = self.traffic.vehicles
        near = np.flatnonzero((s > camera.s - 15) & (s < camera.s + VIEW_M))
        near = near[near != 0]
        right, forward = camera.to_camera(*self.road.locate(s[near], d[near]))
        return Poses(
            number=near,
            kind=[str(vehicles.kind[number]) for number in near],
            colour=vehicles.colour[near],
            length_m=vehicles.length_m[near],
            width_m=vehicles.width_m[near],
            right=right,
            forward=forward,
            turn=self.road.heading_at(s[near]) + yaw[near] - camera.yaw,
            s=s[near],
            d=d[near],
            braking=braking[near],
        )

    def _background(self, camera: Camera, light: Light, view: Surroundings, poses: Poses) -> np.ndarray:
        shadow, beams = shadow_and_beams(camera, light, view.sun, poses)
        ground = self.ground.view(camera, light, shadow, beams)
        rows = camera.height - len(ground)
        return to_bytes(np.concatenate([self.sky.view(camera, rows), ground]))

    def _paint(self, painter: Painter, view: Surroundings, fleet: Fleet) -> tuple[list[Lamp], dict[int, int]]:
        """Paint everything that stands or drives, far things first; also returns each vehicle row's object."""
        lamps: list[Lamp] = []
        painted: dict[int, int] = {}
        for _, kind, what in sorted(self._things(view, fleet), key=lambda thing: -thing[0]):
            if kind == "vehicle":
                painted[what] = painter.begin_object()
                lamps += fleet.paint(painter, what)
            else:
                lamps += _PAINTERS[kind](painter, view, *what) or ()
        return lamps, painted

    def _things(self, view: Surroundings, fleet: Fleet) -> list[tuple[float, str, Any]]:
        """(distance, kind, what) of all that is to be painted."""
        camera = view.camera
        forward = fleet.poses.forward.tolist()
        things: list[tuple[float, str, Any]] = [(forward[row], "vehicle", row) for row in range(len(forward))]
        cells = self.scenery.around(camera.s)
        blocks = [block for cell in cells for block in cell.buildings]
        ends = view.places([b.s + b.along_m for b in blocks], [b.d for b in blocks])
        middles = view.places([b.s + b.along_m / 2 for b in blocks], [b.d for b in blocks])
        things += [
            (end.forward, "building", (block, mid)) for block, end, mid in zip(blocks, ends, middles, strict=True)
        ]
        trees = trees_in_sight(view, [tree for cell in cells for tree in cell.trees])
        things += [(tree.place.forward, "tree", (tree,)) for tree in trees]
        signs = [sign for cell in cells for sign in cell.signs]
        for sign, place in zip(signs, view.places([i.s for i in signs], [i.d for i in signs]), strict=True):
            if place.forward > NEAR_M + 0.5 and abs(place.right) < place.forward * camera.width / camera.focal / 2 + 6:
                things.append((place.forward, "sign", (sign, place)))
        return things + self._lamp_posts(camera, view) + self._rails(camera, view)

    def _lamp_posts(self, camera: Camera, view: Surroundings) -> list[tuple[float, str, Any]]:
        spacing, edge = self.scene.lamp_spacing_m, self.scene.road_edge_m + 0.7
        if spacing <= 0:
            return []
        things: list[tuple[float, str, Any]] = []
        for side, shift in ((1, 0.5), (-1, 0.0)):
            first = math.ceil(camera.s / spacing - shift)
            s = [(first + i + shift) * spacing for i in range(int((DRAW_M - 60) / spacing))]
            feet = view.places(s, [side * edge] * len(s))
            heads = view.places(s, [side * (edge - 2.2)] * len(s))
            things += [(foot.forward, "lamp", (foot, head)) for foot, head in zip(feet, heads, strict=True)]
        return things

    def _rails(self, camera: Camera, view: Surroundings) -> list[tuple[float, str, Any]]:
        edge = self.scene.road_edge_m + 0.5
        lines = [(-edge, False), (edge, False)] if self.scene.guard_rail else []
        if self.scene.median_m > 1:
            lines.append((0.0, True))
        first = math.floor((camera.s - 2) / RAIL_STEP_M)
        s = [(first + i) * RAIL_STEP_M for i in range(25)]
        things: list[tuple[float, str, Any]] = []
        for d, concrete in lines:
            places = view.places(s, [d] * len(s))
            things += [(max(a.forward, 0.0), "rail", (a, b, concrete)) for a, b in pairwise(places)]
        return things

    def _boxes(
        self, painter: Painter, painted: dict[int, int], fleet: Fleet, speed: np.ndarray
    ) -> tuple[VehicleBox, ...]:
        height, width = self.size
        poses = fleet.poses
        distances = np.hypot(poses.right, poses.forward)
        boxes = []
        for row in np.flatnonzero(np.exp(-distances / self.scene.sight_m) >= MIN_CONTRAST).tolist():
            found = painter.extent(painted[row], fleet.windows[row])
            if found is None or found[1] < MIN_VISIBLE_PX:
                continue
            (x1, y1, x2, y2), area = found
            boxes.append(
                VehicleBox(
                    vehicle=int(poses.number[row]),
                    kind=poses.kind[row],
                    box=(x1 / width, y1 / height, x2 / width, y2 / height),
                    visible_px=area,
                    distance_m=float(distances[row]),
                    speed_mps=float(speed[poses.number[row]]),
                    oncoming=bool(abs(poses.turn[row]) > np.pi / 2),
                )
            )
        return tuple(boxes)


def _glow(painter: Painter, lamps: list[Lamp], size: tuple[int, int]) -> np.ndarray:
    """Add the glow of visible lamps: light spread by three blurs, so that near and far lamps look alike."""
    picture = painter.picture()
    unit = size[0] / 128
    energy = np.zeros((*size, 3), np.float32)
    for lamp in lamps:
        column, row = round(lamp.column - 0.5), round(lamp.row - 0.5)
        if 0 <= column < size[1] and 0 <= row < size[0] and painter.shows(lamp.column, lamp.row, lamp.owner):
            spread = lamp.power * unit**2 / (0.35 + lamp.distance_m / 55)
            energy[row, column] += np.array(lamp.colour, np.float32) * min(spread, 3.2 * unit**2)
    if not energy.any():
        return picture
    glow = 1.9 * cv2.GaussianBlur(energy, (0, 0), 0.8 * unit) + 3.0 * cv2.GaussianBlur(energy, (0, 0), 2.4 * unit)
    # The wide halo is smooth enough to be blurred at a quarter of the size.
    small = cv2.resize(energy, (size[1] // 4, size[0] // 4), interpolation=cv2.INTER_AREA)
    halo = cv2.GaussianBlur(small, (0, 0), 7.0 * unit / 4)
    glow += 4.2 * cv2.resize(halo, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return picture + np.minimum(glow, 1.5) * (255 - picture)
