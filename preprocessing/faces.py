"""Blur faces before anything is encoded, with a YuNet detector given by its path. Pure functions over frames."""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

# Low on purpose: a blurred hubcap costs less than a face that is left.
_LEAST_SCORE = 0.4
_LONGEST_SIDE = 1280
# The detector's box ends at brow and chin.
_MARGIN = 0.25
_CELLS = 4


def blur_faces(image: np.ndarray, detector: str) -> np.ndarray:
    """Return an image (H, W, 3) with every face that the detector finds turned into a few soft cells.

    Raises:
        ValueError: if the file is no detector.
    """
    boxes = find_faces(image, detector)
    if not boxes:
        return image
    blurred = image.copy()
    for left, top, right, bottom in boxes:
        face = blurred[top:bottom, left:right]
        cells = cv2.resize(face, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
        blurred[top:bottom, left:right] = cv2.resize(cells, face.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return blurred


def find_faces(image: np.ndarray, detector: str) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) in pixels, with a margin, inside the image."""
    height, width = image.shape[:2]
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    network = _load(detector)
    network.setInputSize(small.shape[1::-1])
    _, found = network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    boxes = []
    for x, y, w, h in (face[:4] / scale for face in (found if found is not None else ())):
        left, top = max(int(x - _MARGIN * w), 0), max(int(y - _MARGIN * h), 0)
        right, bottom = min(int(x + (1 + _MARGIN) * w) + 1, width), min(int(y + (1 + _MARGIN) * h) + 1, height)
        if right > left and bottom > top:
            boxes.append((left, top, right, bottom))
    return boxes


@lru_cache(maxsize=1)
def _load(detector: str) -> Any:
    try:
        return cv2.FaceDetectorYN.create(detector, "", (320, 320), _LEAST_SCORE)
    except cv2.error as err:
        raise ValueError(f"{detector} is no YuNet face detector (ONNX): {str(err).strip().splitlines()[-1]}") from err
