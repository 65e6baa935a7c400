"""The road's centre line: a smooth curve known at every metre, and the way from road to world coordinates.

World: (east, north) in metres; road: s along the centre line, d to the right of it.
"""

import numpy as np

from preprocessing.synthetic.scene import Scene, random

STEP_M = 2.0
MAX_CURVATURE = 1 / 380


class Road:
    """Centre line from `start_m` to `end_m`.

    Attributes:
        s: sample positions, every STEP_M.
        east, north, heading: of the centre line at `s`; heading is clockwise from north, radians.
    """

    def __init__(self, scene: Scene, start_m: float, end_m: float) -> None:
        rng = random(scene.seed, scene.clip, "road")
        wavelengths = np.array((170.0, 310.0, 620.0, 1300.0)) * rng.uniform(0.8, 1.25, 4)
        phases = rng.uniform(0, 2 * np.pi, 4)
        weights = np.array((0.35, 0.7, 1.0, 0.8))
        weights *= scene.curvature * np.sqrt(2) / np.sqrt((weights**2).sum())
        # The grid is anchored at 0 and integrated outwards, so that a longer road repeats a shorter one exactly.
        behind = np.arange(0, -int(-start_m / STEP_M) - 1, -1)[::-1] * STEP_M
        ahead = np.arange(1, int(end_m / STEP_M) + 1) * STEP_M
        self.s = np.concatenate([behind, ahead])
        curvature = (weights * np.sin(2 * np.pi * self.s[:, None] / wavelengths + phases)).sum(1)
        self.curvature = np.clip(curvature, -MAX_CURVATURE, MAX_CURVATURE)
        zero = len(behind) - 1
        self.heading = _integrate(self.curvature, zero)
        self.east = _integrate(np.sin(self.heading), zero)
        self.north = _integrate(np.cos(self.heading), zero)

    def heading_at(self, s: np.ndarray | float) -> np.ndarray:
        """Heading of the centre line at `s`."""
        return np.interp(s, self.s, self.heading)

    def locate(self, s: np.ndarray | float, d: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """World position (east, north) of road coordinates."""
        heading = self.heading_at(s)
        east = np.interp(s, self.s, self.east) + d * np.cos(heading)
        north = np.interp(s, self.s, self.north) - d * np.sin(heading)
        return east, north


def _integrate(values: np.ndarray, zero: int) -> np.ndarray:
    middle = (values[1:] + values[:-1]) / 2 * STEP_M
    before = -np.cumsum(middle[:zero][::-1])[::-1]
    after = np.cumsum(middle[zero:])
    return np.concatenate([before, [0.0], after])
