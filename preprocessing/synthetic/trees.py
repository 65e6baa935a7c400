"""Paint trees: a trunk, and a crown or the tiers of a conifer, lighter towards the sun."""

from functools import lru_cache

import numpy as np

from preprocessing.synthetic.painter import Painter, strip, to_fixed
from preprocessing.synthetic.roadside import Place, Surroundings
from preprocessing.synthetic.scenery import Tree

_BARK = (0.06, 0.045, 0.03)
_CORNERS = 14
# Foot, tip and half width of each tier of a conifer, as shares of its height.
_TIERS = ((0.10, 0.62, 0.24), (0.34, 0.82, 0.19), (0.58, 1.0, 0.13))


def _crowns() -> np.ndarray:
    """Eight outlines of _CORNERS points around (0, 0), about unit radius."""
    rng = np.random.default_rng(7)
    angle = np.arange(_CORNERS) * (2 * np.pi / _CORNERS)
    outlines = []
    for _ in range(8):
        radius = 1 + 0.10 * np.sin(2 * angle + rng.uniform(0, 6.3)) + 0.07 * np.sin(3 * angle + rng.uniform(0, 6.3))
        outlines.append(np.stack([radius * np.cos(angle), -radius * np.sin(angle)], axis=1))
    return np.array(outlines)


_CROWNS = _crowns()
_WIDTHS = np.array([(0.30 + 0.02 * (shape % 3), 0.33) for shape in range(8)])[:, None]


@lru_cache(maxsize=1)
def _broadleaves(lean: float) -> np.ndarray:
    """Crown, its lit middle and two bright blobs of each shape, (8, 4, _CORNERS, 2), for a tree of height 1.

    Args:
        lean: how far to the right the sun stands, -1 to 1.
    """
    crown, blob = _CROWNS * _WIDTHS, np.roll(_CROWNS, -3, axis=0) * (0.13, 0.12)
    left, right = np.array((-0.08 + 0.10 * lean, -0.12)), np.array((0.10 + 0.06 * lean, -0.03))
    layers = [
        crown,
        crown * 0.76 + (0.055 * lean, -0.05),
        blob + left,
        blob * 0.8 + right,
    ]
    return np.stack(layers, axis=1) - (0, 0.66)


@lru_cache(maxsize=1)
def _conifer(lean: float) -> np.ndarray:
    """Dark and lit triangle of each tier, (6, 3, 2), for a tree of height 1."""
    triangles = []
    for low, high, wide in _TIERS:
        left, right = wide * (0.25 + 0.6 * max(-lean, 0)), wide * (0.25 + 0.6 * max(lean, 0))
        triangles.append(((-wide, -low), (wide, -low), (0, -high)))
        triangles.append(((-left, -low - 0.02), (right, -low - 0.02), (0, -high)))
    return np.array(triangles)


def paint_tree(painter: Painter, view: Surroundings, tree: Tree, place: Place) -> None:
    """Paint a tree as a new object; what is finer than some pixels is left out."""
    height = tree.height_m * view.grown(tree.s) * view.camera.focal / place.forward
    if height < 0.8:
        return
    column, row = view.camera.pixel(place.right, 0.0, place.forward)
    half = max(0.022 * height, 0.3)
    painter.begin_object()
    trunk = strip((column, row), (column, row - 0.45 * height), half, 0.7 * half)
    painter.stand(trunk, view.colour(_BARK, place, sun=0.3, facing=0.8))
    dark = view.colour(tree.shade, place, sun=0.16, facing=0.8)
    outlines = _conifer(view.sun[0]) if tree.conifer else _broadleaves(view.sun[0])[tree.shape]
    layers = to_fixed(outlines * height + (column, row))
    if tree.conifer:
        lit = view.colour(tree.shade, place, sun=0.6, facing=0.9)
        for tier in range(0, len(layers), 2):
            painter.stand(layers[tier], dark)
            if height > 7:
                painter.fill(layers[tier + 1], lit)
        return
    painter.stand(layers[0], dark)
    if height > 5:
        painter.fill(layers[1], view.colour(tree.shade, place, sun=0.55, facing=0.9))
    if height > 16:
        bright = view.colour([1.15 * c for c in tree.shade], place, sun=0.95, facing=1.0)
        painter.fill(layers[2], bright)
        painter.fill(layers[3], bright)
