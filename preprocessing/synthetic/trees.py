"""Paint trees: a trunk, and a crown or the tiers of a conifer, lighter towards the sun."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from preprocessing.synthetic.camera import NEAR_M
from preprocessing.synthetic.painter import Painter, to_fixed
from preprocessing.synthetic.roadside import Place, Surroundings
from preprocessing.synthetic.scenery import Tree

_BARK = (0.06, 0.045, 0.03)
_CORNERS = 14
_REACH_M = 6
# Corners of a trunk in half widths, and which of them are at its top, where it is narrower.
_TRUNK = np.array(((-1, 0), (1, 0), (0.7, 0), (-0.7, 0)))
_UPPER = np.array(((0,), (0,), (1,), (1,)))
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


class SeenTree(NamedTuple):
    """A tree in sight: `trunk` and `layers` are canvas corners, `height` is in pixels."""

    tree: Tree
    place: Place
    height: float
    trunk: np.ndarray
    layers: np.ndarray


def trees_in_sight(view: Surroundings, trees: list[Tree]) -> list[SeenTree]:
    """Lay all trees of a frame out together: most are a few pixels high."""
    camera = view.camera
    places = view.places([tree.s for tree in trees], [tree.d for tree in trees])
    right, forward = np.array([(place.right, place.forward) for place in places]).reshape(-1, 2).T
    grown = np.array([tree.height_m * view.grown(tree.s) for tree in trees])
    height = grown * camera.focal / np.maximum(forward, NEAR_M)
    inside = np.abs(right) < forward * camera.width / camera.focal / 2 + _REACH_M
    seen = np.flatnonzero((forward > NEAR_M + 0.5) & inside & (height >= 0.8))
    shapes = np.array([tree.shape for tree in trees], int)[seen]
    foot = camera.project(np.stack([right, 0 * right, forward], axis=-1)[seen])[:, None]
    tall = height[seen, None, None]
    half = np.maximum(0.022 * tall, 0.3)
    trunks = to_fixed(foot + _TRUNK * half + (0, -0.45) * tall * _UPPER)
    crowns = to_fixed(foot[:, None] + _broadleaves(view.sun[0])[shapes] * tall[..., None])
    conifers = to_fixed(foot[:, None] + _conifer(view.sun[0]) * tall[..., None])
    return [
        SeenTree(trees[i], places[i], float(height[i]), trunk, conifer if trees[i].conifer else crown)
        for i, trunk, crown, conifer in zip(seen.tolist(), trunks, crowns, conifers, strict=True)
    ]


def paint_tree(painter: Painter, view: Surroundings, seen: SeenTree) -> None:
    """Paint a tree as a new object; what is finer than some pixels is left out."""
    tree, place, height, trunk, layers = seen
    painter.begin_object()
    painter.stand(trunk, view.colour(_BARK, place, sun=0.3, facing=0.8))
    dark = view.colour(tree.shade, place, sun=0.16, facing=0.8)
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
