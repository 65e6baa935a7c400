"""What vehicles throw on the ground: their shadows and the light of their headlights."""

import cv2
import numpy as np

from preprocessing.synthetic.camera import NEAR_M, Camera
from preprocessing.synthetic.light import Light
from preprocessing.synthetic.vehicles import Poses

_ROOF_M = 1.3
# Reach in metres and brightness of 255 of the two nested beams of a headlight.
_BEAMS = ((13.0, 40), (8.0, 70))


def shadow_and_beams(
    camera: Camera, light: Light, sun: tuple[float, float, float], poses: Poses
) -> tuple[np.ndarray, np.ndarray]:
    """Stain the ground.

    Args:
        camera: of the frame.
        light: of the frame.
        sun: direction to the sun, (right, up, forward).
        poses: vehicles that throw.

    Returns:
        (H, W) float32 share of sunlight that vehicles take away, and light that their headlights add.
    """
    shadow, lit = np.zeros((2, camera.height, camera.width), np.uint8)
    corners = _footprints(poses)
    if light.shadow > 0.05:
        thrown = corners - np.array((sun[0], sun[2])) * _ROOF_M / max(sun[1], 0.5)
        _stain(shadow, camera, np.concatenate([corners, thrown], axis=1), 170)
    _stain(shadow, camera, corners, 255)
    unit = camera.height / 128
    if light.lamps > 0:
        oncoming = np.abs(poses.turn) > np.pi / 2
        ahead = np.stack([np.sin(poses.turn), np.cos(poses.turn)], axis=-1)[oncoming, None]
        for reach, value in _BEAMS:
            beams = corners[oncoming]
            beams[:, 2:] += ahead * reach
            _stain(lit, camera, beams, value)
    return _soft(shadow, 0.45 * unit), _soft(lit, 2.7 * unit)


def _soft(mask: np.ndarray, sigma: float) -> np.ndarray:
    return np.multiply(cv2.GaussianBlur(mask, (0, 0), sigma) if mask.any() else mask, 1 / 255, dtype=np.float32)


def _footprints(poses: Poses) -> np.ndarray:
    """Corners of the vehicles on the ground, a little wider than they are: camera (right, forward), (k, 4, 2)."""
    across = np.array((-1, 1, 1, -1)) * (poses.width_m[:, None] / 2 + 0.1)
    along = np.array((-1, -1, 1, 1)) * (poses.length_m[:, None] / 2 + 0.125)
    cos, sin = np.cos(poses.turn)[:, None], np.sin(poses.turn)[:, None]
    right = poses.right[:, None] + across * cos + along * sin
    return np.stack([right, poses.forward[:, None] + along * cos - across * sin], axis=-1)


def _stain(mask: np.ndarray, camera: Camera, ground: np.ndarray, value: int) -> None:
    """Paint the convex hulls of ground points (k, n, 2) into a mask."""
    points = np.stack([ground[..., 0], np.zeros(ground.shape[:2]), ground[..., 1]], axis=-1)
    whole = (ground[..., 1] >= NEAR_M).all(1)
    for fixed in _to_fixed(camera.project(points[whole])):
        cv2.fillConvexPoly(mask, cv2.convexHull(fixed), value, cv2.LINE_AA, 4)
    for cut in points[~whole]:
        hull = cv2.convexHull(cut[:, ::2].astype(np.float32), returnPoints=False)[:, 0]
        outline = camera.outline(cut[hull].tolist())
        if outline:
            cv2.fillConvexPoly(mask, _to_fixed(np.array(outline)), value, cv2.LINE_AA, 4)


def _to_fixed(pixels: np.ndarray) -> np.ndarray:
    return np.rint((pixels - 0.5) * 16).astype(np.int32)
