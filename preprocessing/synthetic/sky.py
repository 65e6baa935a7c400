"""Sky, clouds, sun and far hills: a panorama made once per clip, of which each frame shows a part."""

import cv2
import numpy as np

from preprocessing.synthetic.camera import Camera
from preprocessing.synthetic.light import Light, display
from preprocessing.synthetic.scene import Scene, random

_MARGIN = 6


class Sky:
    """The panorama of a drive, in display colours.

    Attributes:
        image: (rows, columns, 3) float32; row 0 is `_MARGIN` rows below the horizon, going up.
        first: azimuth of column 0, radians.
        focal: columns per radian.
    """

    def __init__(self, scene: Scene, light: Light, camera: Camera, yaw: tuple[float, float]) -> None:
        half = np.arctan(camera.width / 2 / camera.focal) + 0.06
        self.focal = camera.focal
        self.first = yaw[0] - half
        columns = int(np.ceil((yaw[1] - yaw[0] + 2 * half) * self.focal)) + 2
        rows = int(np.ceil(camera.horizon)) + 2 * _MARGIN
        azimuth = self.first + np.arange(columns) / self.focal
        elevation = (np.arange(rows) - _MARGIN + 0.5) / self.focal
        sky = _gradient(light, azimuth, elevation)
        sky = _clouds(scene, light, sky, azimuth, elevation)
        if light.elevation_deg < -8:
            sky += _stars(scene, azimuth, elevation, self.focal)
        sky = _far_land(scene, light, sky, azimuth, elevation, self.focal)
        self.image = display(sky).astype(np.float32)

    def view(self, camera: Camera, rows: int) -> np.ndarray:
        """The upper `rows` rows of a frame, (rows, W, 3)."""
        offset = np.arange(camera.width) + 0.5 - camera.width / 2
        columns = (camera.yaw + np.arctan(offset / camera.focal) - self.first) * self.focal
        height = camera.horizon - (np.arange(rows) + 0.5) + _MARGIN - 0.5
        map_x = np.broadcast_to(columns.astype(np.float32), (rows, camera.width))
        map_y = np.broadcast_to(height.astype(np.float32)[:, None], (rows, camera.width))
        return cv2.remap(
            self.image,
            np.ascontiguousarray(map_x),
            np.ascontiguousarray(map_y),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )


def noise_grid(rng: np.random.Generator, size: int) -> np.ndarray:
    """A tileable field of smooth noise about 0, (8 size, 8 size) with features of 8 pixels."""
    coarse = rng.normal(size=(size, size)).astype(np.float32)
    wrapped = np.pad(coarse, 3, mode="wrap")
    fine = cv2.resize(wrapped, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(fine[24:-24, 24:-24])


def sample_noise(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample a field at positions counted in features; tiles."""
    cells = field.shape[0] / 8
    columns, rows = ((8 * (place - cells * np.floor(place / cells))).astype(np.float32) for place in (x, y))
    return cv2.remap(field, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _gradient(light: Light, azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    share = np.exp(-4.2 * np.maximum(elevation, 0))[:, None, None]
    sky = light.zenith * (1 - share) + light.horizon * share
    sun = np.arctan2(light.sun_direction[0], light.sun_direction[2])
    beside = np.angle(np.exp(1j * (azimuth - sun)))[None, :]
    above = elevation[:, None] - np.tan(np.radians(min(max(light.elevation_deg, -4.0), 70.0)))
    angle2 = beside**2 + above**2
    low = float(np.clip((25 - light.elevation_deg) / 25, 0, 1))
    glow = 0.55 * np.exp(-angle2 / 0.012) + (0.25 + 0.5 * low) * np.exp(-angle2 / 0.25)
    strength = max(light.sun.max(), 0.35 * float(np.clip((light.elevation_deg + 9) / 8, 0, 1)))
    warm = np.array((1.0, 0.62, 0.34)) if light.elevation_deg < 6 else np.array((1.0, 0.93, 0.8))
    return sky + (strength * glow)[..., None] * warm * 0.6


def _clouds(scene: Scene, light: Light, sky: np.ndarray, azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    if scene.cloud_cover < 0.08:
        return sky
    field = noise_grid(random(scene.seed, scene.clip, "clouds"), 32)
    # A flat cloud layer seen from below: features shrink towards the horizon.
    depth = 1.0 / (np.maximum(elevation, 0) + 0.16)[:, None]
    x = azimuth[None, :] * 2.2 * np.sqrt(depth)
    y = np.broadcast_to(1.1 * depth, x.shape)
    value = sum(a * sample_noise(field, x * k + 7 * k, y * k) for a, k in ((1.0, 1.0), (0.5, 2.1), (0.22, 4.3)))
    cover = 1.15 * scene.cloud_cover - 0.35
    amount = np.clip((np.asarray(value) * 0.55 + cover * 2.2) * 0.8, 0, 1)
    amount *= np.clip(np.maximum(elevation, 0) / 0.10, 0, 1)[:, None]
    white = light.ambient * 0.85 + light.sun * 0.33 + 0.25 * light.horizon
    shade = light.ambient * 0.75 + 0.28 * light.horizon + 0.1 * light.sun
    body = np.clip(np.asarray(value) * 0.35 + 0.3, 0, 1)[..., None]
    colour = white * (1 - body) + shade * body
    return sky + (amount * 0.85)[..., None] * (colour - sky)


def _stars(scene: Scene, azimuth: np.ndarray, elevation: np.ndarray, focal: float) -> np.ndarray:
    rng = random(scene.seed, scene.clip, "stars")
    image = np.zeros((len(elevation), len(azimuth)), np.float32)
    count = 90
    places = rng.uniform((-np.pi, 0.06), (np.pi, 0.9), (count, 2))
    power = rng.uniform(0.2, 1.0, count) ** 3
    for (beside, above), light in zip(places, power, strict=True):
        column, row = (beside - azimuth[0]) * focal, above * focal + _MARGIN - 0.5
        if 1 <= column < image.shape[1] - 2 and 1 <= row < image.shape[0] - 2:
            image[round(row), round(column)] += light
    sigma = max(0.55, focal / 330)
    stars = cv2.GaussianBlur(image, (0, 0), sigma) * (2 * np.pi * sigma**2)
    return (0.11 * (1 - scene.cloud_cover) * stars)[..., None] * np.array((0.9, 0.95, 1.0))


def _far_land(
    scene: Scene, light: Light, sky: np.ndarray, azimuth: np.ndarray, elevation: np.ndarray, focal: float
) -> np.ndarray:
    """Two ranges of hills, then a line of trees (and roofs in a city) on the horizon."""
    rng = random(scene.seed, scene.clip, "hills")
    hilly = rng.uniform(0.0, 1.0) ** 1.5 * (0.5 if scene.surroundings == "city" else 1.0)
    lit = light.ambient + 0.45 * light.sun
    layers = (
        (0.075 * hilly + 0.004, 2.0, np.array((0.12, 0.15, 0.17)), 0.16 * np.exp(-9000 / (scene.sight_m * 9))),
        (0.036 * hilly + 0.006, 5.0, np.array((0.09, 0.13, 0.075)), 0.75 * np.exp(-3000 / (scene.sight_m * 6))),
        (0.012, 60.0, np.array((0.055, 0.085, 0.04)), 0.95 * np.exp(-500 / scene.sight_m)),
    )
    for height, frequency, albedo, clear in layers:
        outline = height * _outline(rng, azimuth, frequency)
        cover = np.clip((outline[None, :] - elevation[:, None]) * focal + 0.5, 0, 1)[..., None]
        colour = albedo * lit * clear + light.haze * (1 - clear)
        sky = sky + cover * (colour - sky)
    if scene.surroundings == "city":
        roofs = _roofs(rng, azimuth, focal)
        cover = np.clip((roofs[None, :] - elevation[:, None]) * focal + 0.5, 0, 1)[..., None]
        clear = 0.6 * np.exp(-700 / scene.sight_m)
        sky = sky + cover * (0.15 * lit * clear + light.haze * (1 - clear) + 0.012 * light.lamps - sky)
    return sky


def _outline(rng: np.random.Generator, azimuth: np.ndarray, frequency: float) -> np.ndarray:
    waves = frequency * np.array((1.0, 1.9, 3.7, 7.1))
    phases = rng.uniform(0, 2 * np.pi, 4)
    heights = (0.5, 0.3, 0.14, 0.08) @ np.sin(waves[:, None] * azimuth + phases[:, None])
    return np.clip(0.62 + 0.5 * heights, 0.1, 1.3)


def _roofs(rng: np.random.Generator, azimuth: np.ndarray, focal: float) -> np.ndarray:
    edges = np.cumsum(rng.uniform(0.03, 0.11, 400)) - 14.0
    heights = rng.uniform(0.006, 0.045, 400) * (rng.random(400) < 0.8)
    # Edges are one pixel wide, so that roofs do not crawl as the camera turns.
    block = np.searchsorted(edges, azimuth).clip(1, 399)
    share = np.clip((azimuth - edges[block - 1]) * focal, 0, 1)
    return heights[block - 1] * (1 - share) + heights[block] * share
