"""Filled polygons with anti-aliased edges, and beside the picture a map that says which object each pixel shows."""

from collections.abc import Sequence

import cv2
import numpy as np

from preprocessing.synthetic.camera import Point

SUPERSAMPLING = 2
_SHIFT = 4
FIXED = 1 << _SHIFT


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

    def fill(self, corners: np.ndarray, colour: Sequence[float]) -> None:
        """Paint a convex polygon (n, 2) that `to_fixed` has made."""
        cv2.fillConvexPoly(self.canvas, corners, colour, cv2.LINE_AA, _SHIFT)

    def fill_many(self, polygons: list[np.ndarray], colour: Sequence[float]) -> None:
        """Paint polygons that do not overlap, in one colour."""
        if polygons:
            cv2.fillPoly(self.canvas, polygons, colour, cv2.LINE_AA, _SHIFT)

    def claim(self, corners: np.ndarray) -> None:
        """Give the convex polygon's pixels to the object at hand."""
        cv2.fillConvexPoly(self.owner, corners, self.objects, cv2.LINE_8, _SHIFT)

    def stand(self, corners: np.ndarray, colour: Sequence[float]) -> None:
        """Paint a convex polygon and give its pixels to the object at hand."""
        self.fill(corners, colour)
        self.claim(corners)

    def shows(self, column: float, row: float, number: int) -> bool:
        """Say whether a point of object `number` is in the picture and not covered by a nearer object."""
        x, y = int(column * SUPERSAMPLING), int(row * SUPERSAMPLING)
        inside = 0 <= x < self.owner.shape[1] and 0 <= y < self.owner.shape[0]
        return inside and self.owner[y, x] <= number

    def extent(self, number: int, window: list[int]) -> tuple[tuple[float, float, float, float], float] | None:
        """Box (x1, y1, x2, y2) and area of an object's visible pixels, in pixels of the picture.

        Args:
            number: of the object.
            window: (x1, y1, x2, y2) canvas pixels that hold the object.
        """
        left, top, right, bottom = window
        patch = (self.owner[top:bottom, left:right] == number).view(np.uint8)
        area = cv2.countNonZero(patch) / SUPERSAMPLING**2
        if not area:
            return None
        x, y, wide, tall = cv2.boundingRect(patch)
        box = (left + x, top + y, left + x + wide, top + y + tall)
        x1, y1, x2, y2 = (edge / SUPERSAMPLING for edge in box)
        return (x1, y1, x2, y2), area

    def picture(self) -> np.ndarray:
        """The picture, (H, W, 3) float32 from 0 to 255."""
        height, width = self.owner.shape
        size = (width // SUPERSAMPLING, height // SUPERSAMPLING)
        return cv2.resize(self.canvas, size, interpolation=cv2.INTER_AREA).astype(np.float32)

    def in_view(self, points: Sequence[Point]) -> bool:
        """Say whether the bounding box of points in pixels of the picture touches it."""
        height, width = self.owner.shape
        columns, rows = zip(*points, strict=True)
        beside = max(columns) < 0 or min(columns) * SUPERSAMPLING >= width
        return not (beside or max(rows) < 0 or min(rows) * SUPERSAMPLING >= height)


def to_fixed(points: Sequence[Point] | np.ndarray) -> np.ndarray:
    """Picture pixels to OpenCV's fixed-point canvas pixels, whose centres lie at whole numbers."""
    fixed = np.multiply(points, SUPERSAMPLING * FIXED)
    fixed -= 0.5 * FIXED
    return np.rint(fixed, out=fixed).astype(np.int32)


def rectangle(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """Canvas corners of an upright rectangle given in pixels of the picture."""
    return to_fixed(((x1, y1), (x2, y1), (x2, y2), (x1, y2)))


def strip(start: Point, end: Point, half: float, half_end: float) -> np.ndarray:
    """Canvas corners of a thin band from `start` to `end`, `half` pixels to each side along the steeper axis."""
    (x1, y1), (x2, y2) = start, end
    if abs(y2 - y1) >= abs(x2 - x1):
        return to_fixed(((x1 - half, y1), (x1 + half, y1), (x2 + half_end, y2), (x2 - half_end, y2)))
    return to_fixed(((x1, y1 - half), (x1, y1 + half), (x2, y2 + half_end), (x2, y2 - half_end)))


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """Round a float32 picture to uint8, cut to what that holds; changes `picture`."""
    return cv2.convertScaleAbs(np.maximum(picture, 0, out=picture))
