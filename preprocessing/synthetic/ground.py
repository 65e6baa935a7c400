"""The ground: pavement, lane marks, verge and their lighting, anti-aliased analytically.

A row of a camera without roll sees flat ground at one distance, so along a row the place across the road is linear in
the column. What varies only across the road (lanes, lines, wheel tracks, verge) is a table that has been filtered for
every pixel width; dashes are integrated in closed form over the length a pixel covers. So nothing crawls.
"""

from typing import Any, TypeVar

import cv2
import numpy as np

from preprocessing.synthetic.camera import Camera
from preprocessing.synthetic.light import HEADLIGHT_COLOUR, LAMP_COLOUR, Light, display
from preprocessing.synthetic.road import Road
from preprocessing.synthetic.scene import Scene, random
from preprocessing.synthetic.sky import noise_grid, sample_noise

_CELL_M = 0.025
_HALF_WIDTH_M = 42.0
_LEVELS = 13
Real = TypeVar("Real", float, np.ndarray)


class Ground:
    """Tables of one road; `view` renders a frame's lower part.

    Attributes:
        profile: (levels, cells, 4) albedo and roughness across the road, for pixel widths of _CELL_M * 2**level.
        dashes: (levels, cells) share of dashed line.
        dash_m: (length of a dash, period).
    """

    def __init__(self, scene: Scene, road: Road) -> None:
        self.scene = scene
        self.road = road
        rng = random(scene.seed, scene.clip, "ground")
        d = (np.arange(round(2 * _HALF_WIDTH_M / _CELL_M)) + 0.5) * _CELL_M - _HALF_WIDTH_M
        profile, dashes = _profile(scene, d, rng)
        self.profile = _filtered(profile)
        self.dashes = _filtered(dashes[:, None])[..., 0]
        self.dash_m = [(3.0, 12.0), (4.5, 12.0), (3.0, 9.0), (6.0, 18.0)][rng.integers(4)]
        self.field = noise_grid(rng, 32)
        self.patch_m = rng.uniform(5, 11)
        self.roughness = rng.uniform(0.6, 1.3)

    def view(self, camera: Camera, light: Light, shadow: np.ndarray, lit: np.ndarray) -> np.ndarray:
        """Render the rows below the horizon.

        Args:
            camera: of the frame.
            light: of the frame.
            shadow: (H, W) share of sunlight that vehicles and trees take away.
            lit: (H, W) light that other vehicles' headlights throw.

        Returns:
            (rows, W, 3) float32 display colours; the last row is the frame's last.
        """
        first = int(np.floor(camera.horizon)) + 1
        # Rows (n, 1) and columns (W) are few and exact; what has every pixel is float32.
        below = np.arange(first, camera.height)[:, None] + 0.5 - camera.horizon
        reach = camera.focal * camera.height_m
        z = reach / below
        length = reach / np.maximum(below - 0.5, 0.2) - reach / (below + 0.5)
        x_centre, s_centre, turn = self._centre_line(camera, z)
        z, length, x_centre, s_centre, cos, sin = (
            rows.astype(np.float32) for rows in (z, length, x_centre, s_centre, np.cos(turn), np.sin(turn))
        )
        slope = ((np.arange(camera.width) + 0.5 - camera.width / 2) / camera.focal).astype(np.float32)
        right = slope * z
        beside = right - x_centre
        d, s = beside * cos, s_centre + beside * sin
        # A pixel spans a width by its column and another by its row: a line is slanted against the row it crosses.
        across = z * cos / np.float32(camera.focal)
        slanted = np.abs(slope * (length * cos) - length * sin)
        width = np.maximum(across, slanted) + np.float32(0.35) * np.minimum(across, slanted)
        albedo, rough = self._albedo(d, s, width, length * cos)
        # The sky under a vehicle is covered too, by night as by day.
        open_sky, shaded = 1 - 0.55 * shadow[first:], 1 - light.shadow * shadow[first:]
        sun = light.sun * max(light.sun_direction[1], 0.12)
        sources = [(light.ambient, open_sky), (sun, shaded * open_sky)]
        if light.lamps > 0:
            sources.append((light.lamps * HEADLIGHT_COLOUR, headlight(right, z) + lit[first:]))
            sources.append((light.lamps * LAMP_COLOUR, street_light(self.scene, s, d)))
        clear = np.exp(-z / np.float32(self.scene.sight_m))
        texture = (1 + rough) * clear
        shown = []
        for i, plane in enumerate(albedo):
            incoming = sum(np.float32(colour[i]) * amount for colour, amount in sources)
            shown.append(plane * incoming * texture + np.float32(light.haze[i]) * (1 - clear))
        return display(cv2.merge(shown))

    def _centre_line(self, camera: Camera, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the centre line crosses each distance: (right, s, direction against the camera's)."""
        near, far = np.searchsorted(self.road.s, (camera.s - 12, camera.s + 1400))
        part = slice(max(near - 1, 0), far)
        right, forward = camera.to_camera(self.road.east[part], self.road.north[part])
        forward = np.maximum.accumulate(forward)
        return tuple(np.interp(z, forward, v) for v in (right, self.road.s[part], self.road.heading[part] - camera.yaw))

    def _albedo(
        self, d: np.ndarray, s: np.ndarray, width: np.ndarray, length: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Red, green and blue albedo, and how much lighter or darker the surface is."""
        cell = (d + np.float32(_HALF_WIDTH_M)) / np.float32(_CELL_M) - np.float32(0.5)
        level = np.clip(np.log2(width / np.float32(_CELL_M)), 0, _LEVELS - 1.01)
        base = cv2.remap(self.profile, cell, level, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        *albedo, roughness = cv2.split(base)
        line = cv2.remap(self.dashes, cell, level, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        line *= self._dash_share(s, length)
        rough = self._unevenness(d, s, np.maximum(width, length / 3))
        return [plane + line * (0.62 - plane) for plane in albedo], np.clip(rough * roughness * (1 - line), -0.6, 0.9)

    def _unevenness(self, d: np.ndarray, s: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Smooth noise of three sizes; a feature fades before a pixel covers half of it."""
        patch = self.patch_m * self.roughness
        rough = np.zeros_like(d)
        for size, amplitude in ((2.6 * patch, 0.5), (0.7 * patch, 0.55), (0.2 * patch, 0.4)):
            visible = np.clip(1.6 - 2.6 * width / np.float32(size), 0, 1)
            near = int((visible > 0).any(1).argmax())
            if visible[near].any():
                noise = sample_noise(self.field, s[near:] / np.float32(3 * size), d[near:] / np.float32(size))
                rough[near:] += amplitude * visible[near:] * noise
        return rough

    def _dash_share(self, s: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Share of dash within the length a pixel covers: a difference of integrals."""
        dash, period = self.dash_m
        half = np.maximum(length, 0.02) / 2
        phase = s - period * np.floor(s / period)

        def integral(x: np.ndarray) -> np.ndarray:
            turns = np.floor(x / period)
            return turns * dash + np.minimum(x - turns * period, dash)

        return (integral(phase + half) - integral(phase - half)) / (2 * half)


def headlight(right: Real, forward: Real, maths: Any = np) -> Real:
    """Illuminance of the own low beams at a place before the camera; for one place pass `math`."""
    spread = 1.3 + 0.17 * forward
    along = 2.3 * (1 - maths.exp(-((forward / 6.0) ** 2))) / (1 + (forward / 21.0) ** 2.2)
    return along * (maths.exp(-((right / spread) ** 2)) + 0.12 * maths.exp(-((right / (2.6 * spread)) ** 2)))


def street_light(scene: Scene, s: Real, d: Real, maths: Any = np) -> Real:
    """Illuminance of the street lamps, zero without lamps; for one place pass `math`."""
    spacing, edge = scene.lamp_spacing_m, scene.road_edge_m - 1.0
    if spacing <= 0:
        return 0.0 * d
    # Lamps stand on both sides; those on the left half a spacing further on.
    turns = s / spacing
    right, left = (
        maths.exp(-(((x - maths.floor(x) - 0.5) * spacing / 9.5) ** 2)) * 0.40 + 0.05 for x in (turns, turns + 0.5)
    )
    return right * maths.exp(-(((d - edge) / 7.5) ** 2)) + left * maths.exp(-(((d + edge) / 7.5) ** 2))


def _profile(scene: Scene, d: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Albedo and roughness at each distance from the centre line, and where dashed lines run."""
    tone = rng.uniform(0.085, 0.17)
    asphalt = tone * np.array((1.0, 1.0, 1.02)) * rng.uniform(0.97, 1.03, 3)
    grass = np.array((0.085, 0.125, 0.04)) * rng.uniform(0.75, 1.3) * np.array((rng.uniform(0.8, 1.5), 1, 1))
    pavement = rng.uniform(0.22, 0.32) * np.array((1.0, 0.97, 0.92))
    side = np.abs(d)
    edge, inner = scene.road_edge_m, scene.median_m / 2
    ground = {"city": pavement, "forest": grass * 0.8}.get(scene.surroundings, grass)
    colour = np.where((side < edge)[:, None], asphalt, ground)
    rough = np.where(side < edge, 0.10, 0.42)
    if scene.surroundings in ("city", "suburb"):
        walk = (side > edge + 0.18) & (side < edge + 3.2)
        colour[walk], rough[walk] = pavement, 0.08
        kerb = (side >= edge) & (side <= edge + 0.18)
        colour[kerb], rough[kerb] = 0.42, 0.04
        beyond = side > edge + 3.2
        colour[beyond] = (0.6 * pavement + 0.4 * grass) if scene.surroundings == "city" else grass
        rough[beyond] = 0.25
    elif scene.surroundings == "rural":
        gravel = (side > edge) & (side < edge + 0.9)
        colour[gravel], rough[gravel] = np.array((0.22, 0.19, 0.14)), 0.2
        field = rng.choice(3)
        far = side > edge + 9
        colour[far] = (grass * 1.25, np.array((0.30, 0.24, 0.10)), np.array((0.17, 0.12, 0.075)))[field]
    if scene.median_m > 1:
        middle = side < inner - 0.35
        colour[middle], rough[middle] = (grass, 0.4) if scene.median_m > 2 else (asphalt * 1.3, 0.1)
    lanes = (side > inner) & (side < edge - scene.shoulder_m)
    place = np.mod(side - inner, scene.lane_width_m) / scene.lane_width_m
    tracks = np.exp(-(((place - 0.26) / 0.09) ** 2)) + np.exp(-(((place - 0.74) / 0.09) ** 2))
    colour[lanes] *= (1 - rng.uniform(0.05, 0.2) * tracks[lanes])[:, None]
    colour[(side < edge) & ~lanes] *= 1.08
    return np.concatenate([_paint_lines(scene, side, colour, rng), rough[:, None]], axis=1), _dashed(scene, side)


def _paint_lines(scene: Scene, side: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    white, yellow = np.array((0.62, 0.62, 0.60)), np.array((0.58, 0.40, 0.06))
    last = scene.median_m / 2 + scene.lanes * scene.lane_width_m
    colour[np.abs(side - last) < 0.075] = white
    middle = yellow if rng.random() < 0.5 else white
    if scene.median_m > 1:
        colour[np.abs(side - scene.median_m / 2) < 0.075] = middle
    elif rng.random() < 0.6:
        colour[np.abs(side - 0.13) < 0.06] = middle
    else:
        colour[side < 0.06] = middle
    return colour


def _dashed(scene: Scene, side: np.ndarray) -> np.ndarray:
    lines = np.zeros(len(side))
    for lane in range(1, scene.lanes):
        lines[np.abs(side - scene.median_m / 2 - lane * scene.lane_width_m) < 0.07] = 1.0
    return lines


def _filtered(values: np.ndarray) -> np.ndarray:
    """Box-filter (cells, k) along the first axis for pixel widths of 2**level cells: (levels, cells, k)."""
    levels = [values]
    for level in range(1, _LEVELS):
        width = 2**level
        padded = np.pad(values, ((width // 2 + 1, width // 2), (0, 0)), mode="edge")
        total = np.cumsum(padded, axis=0)
        levels.append((total[width:] - total[:-width])[: len(values)] / width)
    return np.ascontiguousarray(np.stack(levels), np.float32)
