"""The pinhole camera on a flat road: camera coordinates are (right, up, forward) in metres, up counted from the road.

Pitch is a shift of the horizon, so that an image row sees the ground at one distance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEAR_M = 0.6
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One moment of the camera.

    Attributes:
        height, width: of the image, pixels.
        focal: pixels.
        horizon: row of the horizon, pixels.
        height_m: above the road.
        east, north, yaw: where it stands and looks.
        s, d: the same on the road.
    """

    height: int
    width: int
    focal: float
    horizon: float
    height_m: float
    east: float
    north: float
    yaw: float
    s: float
    d: float

    def to_camera(self, east: np.ndarray, north: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World position to (right, forward)."""
        dx, dy = east - self.east, north - self.north
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return dx * cos - dy * sin, dx * sin + dy * cos

    def project(self, points: np.ndarray) -> np.ndarray:
        """Camera points (..., 3) in front of the camera to pixels (..., 2)."""
        scale = self.focal / points[..., 2]
        pixels = np.empty((*points.shape[:-1], 2))
        pixels[..., 0] = self.width / 2 + scale * points[..., 0]
        pixels[..., 1] = self.horizon + scale * (self.height_m - points[..., 1])
        return pixels

    def pixel(self, right: float, up: float, forward: float) -> Point:
        """Project one point."""
        scale = self.focal / forward
        return self.width / 2 + scale * right, self.horizon + scale * (self.height_m - up)

    def outline(self, polygon: Sequence[Sequence[float]]) -> list[Point]:
        """Project a convex polygon, cut at the near plane; may return no points."""
        return [self.pixel(*point) for point in clip_near(polygon)]


def clip_near(polygon: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Cut a convex polygon of (right, up, forward) at the near plane; may return no points."""
    result: list[Sequence[float]] = []
    for a, b in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if a[2] >= NEAR_M:
            result.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            share = (NEAR_M - a[2]) / (b[2] - a[2])
            result.append((a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), NEAR_M))
    return result if len(result) > 2 else []
