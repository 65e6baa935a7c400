"""Filled polygons with anti-aliased edges, and beside the picture a map that says which object each pixel shows."""

from collections.abc import Sequence

import cv2
import numpy as np

SUPERSAMPLING = 2
_SHIFT = 4
_FIXED = 1 << _SHIFT


class Painter:
    """A canvas at twice the picture's size; objects are painted from far to near.

    Attributes:
        canvas: (2H, 2W, 3) uint8.
        owner: (2H, 2W) uint16, number of the nearest object at each canvas pixel; 0 is road and sky.
    """

    def __init__(self, background: np.ndarray) -> None:
        # Doubling without interpolation: the area filter in `picture` gives the background back unchanged.
        size = (background.shape[1] * SUPERSAMPLING, background.shape[0] * SUPERSAMPLING)
        self.canvas = cv2.resize(background, size, interpolation=cv2.INTER_NEAREST)
        self.owner = np.zeros(self.canvas.shape[:2], np.uint16)
        self.objects = 0

    def begin_object(self) -> int:
        """Start an object; what is painted until the next call belongs to it."""
        self.objects += 1
        return self.objects

    def fill(self, points: np.ndarray, colour: Sequence[float]) -> None:
        """Paint a convex polygon (n, 2) in pixels of the picture."""
        cv2.fillConvexPoly(self.canvas, to_fixed(points), colour, cv2.LINE_AA, _SHIFT)

    def stand(self, points: np.ndarray, colour: Sequence[float]) -> None:
        """Paint a convex polygon (n, 2) and give its pixels to the object at hand."""
        fixed = to_fixed(points)
        cv2.fillConvexPoly(self.canvas, fixed, colour, cv2.LINE_AA, _SHIFT)
        cv2.fillConvexPoly(self.owner, fixed, self.objects, cv2.LINE_8, _SHIFT)

    def fill_fixed(self, fixed: np.ndarray, colour: Sequence[float]) -> None:
        """Paint a convex polygon that `to_fixed` has made."""
        cv2.fillConvexPoly(self.canvas, fixed, colour, cv2.LINE_AA, _SHIFT)

    def fill_many(self, polygons: np.ndarray, colour: Sequence[float]) -> None:
        """Paint polygons (k, n, 2) that do not overlap, in one colour."""
        cv2.fillPoly(self.canvas, list(to_fixed(polygons)), colour, cv2.LINE_AA, _SHIFT)

    def claim(self, points: np.ndarray) -> None:
        """Give the convex polygon's pixels to the object at hand."""
        cv2.fillConvexPoly(self.owner, to_fixed(points), self.objects, cv2.LINE_8, _SHIFT)

    def shows(self, column: float, row: float, number: int) -> bool:
        """Say whether a point of object `number` is in the picture and not covered by a nearer object."""
        x, y = int(column * SUPERSAMPLING), int(row * SUPERSAMPLING)
        inside = 0 <= x < self.owner.shape[1] and 0 <= y < self.owner.shape[0]
        return inside and self.owner[y, x] <= number

    def extent(self, number: int, around: np.ndarray) -> tuple[tuple[float, float, float, float], float] | None:
        """Box (x1, y1, x2, y2) and area of an object's visible pixels, in pixels of the picture.

        Args:
            number: of the object.
            around: (n, 2) points whose bounding box holds the object.
        """
        height, width = self.owner.shape
        low = np.maximum(np.floor(around.min(0) * SUPERSAMPLING) - 2, 0).astype(int)
        high = np.ceil(around.max(0) * SUPERSAMPLING).astype(int) + 3
        patch = self.owner[low[1] : min(high[1], height), low[0] : min(high[0], width)] == number
        rows, columns = np.flatnonzero(patch.any(1)), np.flatnonzero(patch.any(0))
        if not len(rows):
            return None
        box = (low[0] + columns[0], low[1] + rows[0], low[0] + columns[-1] + 1, low[1] + rows[-1] + 1)
        x1, y1, x2, y2 = (float(edge) / SUPERSAMPLING for edge in box)
        return (x1, y1, x2, y2), float(patch.sum()) / SUPERSAMPLING**2

    def picture(self) -> np.ndarray:
        """The picture, (H, W, 3) float32 from 0 to 255."""
        height, width = self.owner.shape
        size = (width // SUPERSAMPLING, height // SUPERSAMPLING)
        return cv2.resize(self.canvas, size, interpolation=cv2.INTER_AREA).astype(np.float32)

    def in_view(self, points: np.ndarray) -> bool:
        """Say whether the bounding box of points (n, 2) touches the picture."""
        height, width = self.owner.shape
        (x1, y1), (x2, y2) = points.min(0) * SUPERSAMPLING, points.max(0) * SUPERSAMPLING
        return bool(x2 >= 0 and y2 >= 0 and x1 < width and y1 < height)


def to_fixed(points: np.ndarray) -> np.ndarray:
    """Picture pixels to OpenCV's fixed-point canvas pixels, whose centres lie at whole numbers."""
    fixed = points * (SUPERSAMPLING * _FIXED)
    fixed -= 0.5 * _FIXED
    return np.rint(fixed, out=fixed).astype(np.int32)


def rectangle(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """Corners of an upright rectangle, pixels of the picture."""
    return np.array(((x1, y1), (x2, y1), (x2, y2), (x1, y2)))


def strip(start: np.ndarray, end: np.ndarray, half: float, half_end: float) -> np.ndarray:
    """Corners of a thin band from `start` to `end`, `half` pixels to each side along the steeper axis."""
    dx, dy = end - start
    across = np.array((1.0, 0.0)) if abs(dy) >= abs(dx) else np.array((0.0, 1.0))
    return np.array((start - half * across, start + half * across, end + half_end * across, end - half_end * across))
